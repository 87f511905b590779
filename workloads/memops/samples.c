#include "samples.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../common/fail.h"

void samples_reserve(struct samples *samples, size_t room)
{
	if (room <= samples->room)
		return;
	samples->ns = realloc(samples->ns, room * sizeof(*samples->ns));
	if (!samples->ns)
		fail("no memory for %zu samples", room);
	/* Touched now: no page fault of ours may fall into a measured operation. */
	memset(samples->ns + samples->room, 0, (room - samples->room) * sizeof(*samples->ns));
	samples->room = room;
}

void samples_add(struct samples *samples, uint64_t ns)
{
	if (samples->count == samples->room)
		samples_reserve(samples, samples->room ? 2 * samples->room : 64);
	samples->ns[samples->count++] = ns;
}

void samples_merge(struct samples *to, const struct samples *from)
{
	samples_reserve(to, to->count + from->count);
	for (size_t i = 0; i < from->count; i++)
		to->ns[to->count++] = from->ns[i];
}

static int compare(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return a < b ? -1 : a > b;
}

void samples_sort(struct samples *samples)
{
	qsort(samples->ns, samples->count, sizeof(*samples->ns), compare);
}

uint64_t samples_quantile(const struct samples *samples, double share)
{
	size_t rank = (size_t)ceil(share * (double)samples->count);

	return samples->ns[rank ? rank - 1 : 0];
}

double samples_mean(const struct samples *samples)
{
	double sum = 0;

	for (size_t i = 0; i < samples->count; i++)
		sum += (double)samples->ns[i];
	return sum / (double)samples->count;
}
