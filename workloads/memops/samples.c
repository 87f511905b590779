#include "samples.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../common/fail.h"

void samples_reserve(struct samples *samples, size_t room)
{
	if (room <= samples->room)
		return;
	samples->values = realloc(samples->values, room * sizeof(*samples->values));
	if (!samples->values)
		fail("no memory for %zu samples", room);
	/* Touched now: no page fault of ours may fall into a measured operation. */
	memset(samples->values + samples->room, 0, (room - samples->room) * sizeof(*samples->values));
	samples->room = room;
}

void samples_add(struct samples *samples, uint64_t value)
{
	if (samples->count == samples->room)
		samples_reserve(samples, samples->room ? 2 * samples->room : 64);
	samples->values[samples->count++] = value;
}

void samples_merge(struct samples *to, const struct samples *from)
{
	samples_reserve(to, to->count + from->count);
	for (size_t i = 0; i < from->count; i++)
		to->values[to->count++] = from->values[i];
}

static int compare(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return a < b ? -1 : a > b;
}

void samples_sort(struct samples *samples)
{
	qsort(samples->values, samples->count, sizeof(*samples->values), compare);
}

uint64_t samples_quantile(const struct samples *samples, double share)
{
	size_t rank = (size_t)ceil(share * (double)samples->count);

	return samples->values[rank ? rank - 1 : 0];
}

static double mean(const uint64_t *values, size_t count)
{
	double sum = 0;

	for (size_t i = 0; i < count; i++)
		sum += (double)values[i];
	return sum / (double)count;
}

double samples_mean(const struct samples *samples)
{
	return mean(samples->values, samples->count);
}

double samples_low(const struct samples *samples)
{
	return mean(samples->values, (samples->count + 1) / 2);
}
