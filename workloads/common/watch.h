/*
 * A measured phase over time: a thread that prints a line every so many seconds,
 *
 *	numalab-point: {"seconds": 1.5, "work": 120000, "passes": 3, "pages_sharing": 4096, ..., "node0": 900}
 *
 * work is what all threads have done so far; passes and what KSM counts are the machine's, since the phase began or
 * as they stand; nodeN is how many of up to 1024 sampled pages of the region lie there. What a kernel does not count
 * is left out.
 */
#ifndef NUMALAB_WATCH_H
#define NUMALAB_WATCH_H

#include <stdint.h>

#define WATCH_THREADS 4096

struct watch_counter {
	uint64_t done;
} __attribute__((aligned(64)));

extern struct watch_counter watch_counters[WATCH_THREADS];

/* Thread number `thread` has done `amount` of work more. */
static inline void watch_add(unsigned int thread, uint64_t amount)
{
	uint64_t *done = &watch_counters[thread].done;

	__atomic_store_n(done, *done + amount, __ATOMIC_RELAXED);
}

/* What the first `threads` threads have done. */
uint64_t watch_work(uint64_t threads);

/* Begin and end; `interval` 0: nothing is printed. The end prints a last line. */
void watch_start(uint64_t threads, double interval, void *start, uint64_t bytes);
void watch_stop(void);

#endif
