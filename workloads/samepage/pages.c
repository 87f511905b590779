#include "pages.h"

void pages_fill(const struct pages *pages, uint64_t from, uint64_t to)
{
	for (uint64_t page = from; page < to; page++)
		for (uint64_t word = 0; word < pages->page_words; word++)
			pages->words[page * pages->page_words + word] = pages_word(pages, page, word);
}

uint64_t pages_errors(const struct pages *pages, uint64_t from, uint64_t to)
{
	uint64_t errors = 0;

	for (uint64_t page = from; page < to; page++)
		for (uint64_t word = 0; word < pages->page_words; word++)
			errors += pages->words[page * pages->page_words + word] != pages_word(pages, page, word);
	return errors;
}
