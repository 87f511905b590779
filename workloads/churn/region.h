/*
 * A region whose every page has a content that is known, so that whatever the kernel does with its pages can be checked.
 *
 * A page's content is named by a number. Below COMMON it is one that many pages of all processes have at the same time
 * (0: only zeroes); all others are this process's own. What each page is to hold stands outside of the region.
 */
#ifndef NUMALAB_CHURN_REGION_H
#define NUMALAB_CHURN_REGION_H

#include <stdint.h>

#define COMMON 64

struct region {
	uint64_t *words;
	uint64_t count;	     /* pages */
	uint64_t page_words; /* words of a page */
	uint64_t seed;
	uint64_t *contents;  /* of each page */
};

/* Give a page a content. */
void region_write(struct region *region, uint64_t page, uint64_t content);

/* Fail with page, word and both values unless pages [from, to) hold what they are to hold; `who` is for the message. */
void region_check(const struct region *region, uint64_t from, uint64_t to, const char *who);

/* The same of one word of each page: all pages are used, at little cost. */
void region_glance(const struct region *region, uint64_t word, const char *who);

#endif
