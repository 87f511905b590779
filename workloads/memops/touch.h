/* Touching a region page by page, from the CPU of the caller and from CPUs of the other nodes. */
#ifndef NUMALAB_MEMOPS_TOUCH_H
#define NUMALAB_MEMOPS_TOUCH_H

#include <stdint.h>

struct region {
	char *start;
	uint64_t size, page; /* bytes */
};

/* Write to each page a word that only this page of the region has. */
void region_stamp(const struct region *region);

/* Read the word of each page; fail unless it is the page's own, or 0 in a region that nobody has written to. */
void region_look(const struct region *region);
void region_look_blank(const struct region *region);

/* Threads that wait on one CPU of each node but that of the caller. */
struct helpers;

/* `region` may change between two calls of helpers_look(). */
struct helpers *helpers_start(const struct region *region);
/* Let each of them read the region (region_look), one after the other; returns when they have. */
void helpers_look(struct helpers *helpers);
void helpers_stop(struct helpers *helpers);

#endif
