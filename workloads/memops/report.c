#include <stdio.h>

#include "memops.h"

static void report_op(const struct memops *memops, enum op op, const struct samples *all, struct result *result)
{
	static const char *const columns[] = { "min", "median", "p99", "max" };
	static const double shares[] = { 0, 0.5, 0.99, 1 };
	const char *unit = memops->count ? "instructions" : "ns";
	double pages = (double)(memops->size / memops->page);
	char metric[64];

	snprintf(metric, sizeof(metric), "%s_count", op_names[op]);
	result_count(result, metric, all->count);
	snprintf(metric, sizeof(metric), "%s_%s_mean", op_names[op], unit);
	result_real(result, metric, samples_mean(all));
	if (memops->count) {
		snprintf(metric, sizeof(metric), "%s_instructions_low", op_names[op]);
		result_real(result, metric, samples_low(all));
	}
	for (int column = 0; column < 4; column++) {
		uint64_t value = samples_quantile(all, shares[column]);

		snprintf(metric, sizeof(metric), "%s_%s_%s", op_names[op], unit, columns[column]);
		result_count(result, metric, value);
		if (memops->count && column < 2) {
			snprintf(metric, sizeof(metric), "%s_instructions_per_page_%s", op_names[op], columns[column]);
			result_real(result, metric, (double)value / pages);
		}
	}
}

void report(struct memops *memops, unsigned int threads, struct result *result)
{
	result_count(result, "pages", memops->size / memops->page);
	for (enum op op = 0; op < OPS; op++) {
		struct samples *all = &memops->samples[0][op];

		if (!wanted(memops, op))
			continue;
		for (unsigned int thread = 1; thread < threads; thread++)
			samples_merge(all, &memops->samples[thread][op]);
		samples_sort(all);
		report_op(memops, op, all, result);
	}
}
