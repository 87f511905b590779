/*
 * Pages with known content: equal, page by page, in all processes with the same seed, or this process's own.
 *
 * A word is a function of the page's identity and its place in the page: no page is zero, no two pages of one process
 * are equal, and every word can be checked at any time.
 */
#ifndef NUMALAB_SAMEPAGE_PAGES_H
#define NUMALAB_SAMEPAGE_PAGES_H

#include <stdint.h>

#include "../common/rng.h"

struct pages {
	uint64_t *words;      /* the region */
	uint64_t count;	      /* pages */
	uint64_t same;	      /* the first so many are equal everywhere */
	uint64_t page_words;  /* words of a page */
	uint64_t same_seed, own_seed;
};

/* What word number `word` of page number `page` holds. */
static inline uint64_t pages_word(const struct pages *pages, uint64_t page, uint64_t word)
{
	uint64_t seed = page < pages->same ? pages->same_seed : pages->own_seed;

	return rng_mix(seed + page * pages->page_words + word);
}

/* Write pages [from, to). */
void pages_fill(const struct pages *pages, uint64_t from, uint64_t to);

/* How many words of pages [from, to) are wrong. */
uint64_t pages_errors(const struct pages *pages, uint64_t from, uint64_t to);

#endif
