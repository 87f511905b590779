/* What memops has been asked for, and the two ways of doing it: main.c takes times, counted.c counts instructions. */
#ifndef NUMALAB_MEMOPS_H
#define NUMALAB_MEMOPS_H

#include <stdbool.h>
#include <stdint.h>

#include "../common/result.h"
#include "../common/setup.h"
#include "../common/team.h"
#include "samples.h"

enum op { MMAP, MPROTECT, MUNMAP, FAULT, FORK, FORKEXIT, OPS };
extern const char *const op_names[OPS];

/* Who touches a region before it is measured what an operation on it costs. */
enum touchers {
	TOUCH_NONE, /* nobody: what populated it is all that happened */
	TOUCH_ONE,  /* the CPU that does the operation */
	TOUCH_ALL,  /* that one, and one CPU of every other node */
};

struct memops {
	struct team *team;
	uint64_t size, iterations, batch;
	uint64_t ops; /* bit set of enum op */
	int shared;
	int touchers; /* enum touchers */
	const struct setup *setup;
	bool mark_ops, count;
	uint64_t page;
	struct samples (*samples)[OPS]; /* of each thread */
};

static inline bool wanted(const struct memops *memops, enum op op)
{
	return memops->ops >> op & 1;
}

/* Map a region at `where` (NULL: anywhere free) as asked for: populated or empty. */
char *map_region(const struct memops *memops, char *where, bool populated);

/* Wait for a child that ends with status 0. */
void wait_for_child(void);

/* The metrics of all operations asked for, over all threads. */
void report(struct memops *memops, unsigned int threads, struct result *result);

/* What --count cannot be combined with is a usage error. */
void counted_check(const struct memops *memops);

/* Do all operations asked for, and keep the instructions of each in memops->samples[0]. */
void counted_run(struct memops *memops);

#endif
