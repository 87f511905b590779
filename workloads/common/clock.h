/* Monotonic time. */
#ifndef NUMALAB_CLOCK_H
#define NUMALAB_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Nanoseconds since some fixed moment; never goes back. */
static inline uint64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Seconds between two readings of clock_ns(). */
static inline double clock_seconds(uint64_t from, uint64_t to)
{
	return (double)(to - from) * 1e-9;
}

#endif
