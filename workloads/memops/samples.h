/*
 * What one operation took each time, in nanoseconds or instructions: all are kept, so that the tail is known (Mitosis,
 * table 5, reports it).
 */
#ifndef NUMALAB_MEMOPS_SAMPLES_H
#define NUMALAB_MEMOPS_SAMPLES_H

#include <stddef.h>
#include <stdint.h>

struct samples {
	uint64_t *values;
	size_t count, room;
};

void samples_reserve(struct samples *samples, size_t room);
void samples_add(struct samples *samples, uint64_t value);
/* Append all of `from` to `to`. */
void samples_merge(struct samples *to, const struct samples *from);
void samples_sort(struct samples *samples);

/* Of sorted samples, at least one: the smallest that at least `share` (0..1) of the samples do not exceed. */
uint64_t samples_quantile(const struct samples *samples, double share);
double samples_mean(const struct samples *samples);
/* Of sorted samples, at least one: the mean of the lower half, without what interrupts add now and then. */
double samples_low(const struct samples *samples);

#endif
