#include "region.h"

#include <inttypes.h>
#include <unistd.h>

#include "../common/fail.h"
#include "../common/rng.h"

static uint64_t word_of(const struct region *region, uint64_t content, uint64_t word)
{
	return content ? rng_mix(region->seed + content * region->page_words + word) : 0;
}

void region_write(struct region *region, uint64_t page, uint64_t content)
{
	volatile uint64_t *words = region->words + page * region->page_words;

	for (uint64_t word = 0; word < region->page_words; word++)
		words[word] = word_of(region, content, word);
	region->contents[page] = content;
}

static void check_word(const struct region *region, uint64_t page, uint64_t word, const char *who)
{
	const volatile uint64_t *words = region->words + page * region->page_words;
	uint64_t content = region->contents[page], is = words[word], wanted = word_of(region, content, word);

	if (is != wanted)
		fail("%s (process %d): word %" PRIu64 " of page %" PRIu64 " (%p), content %" PRIu64 ", is %#" PRIx64
		     " and not %#" PRIx64 " (now %#" PRIx64 ")",
		     who, (int)getpid(), word, page, (const void *)(words + word), content, is, wanted, words[word]);
}

void region_check(const struct region *region, uint64_t from, uint64_t to, const char *who)
{
	for (uint64_t page = from; page < to; page++)
		for (uint64_t word = 0; word < region->page_words; word++)
			check_word(region, page, word, who);
}

void region_glance(const struct region *region, uint64_t word, const char *who)
{
	for (uint64_t page = 0; page < region->count; page++)
		check_word(region, page, word, who);
}
