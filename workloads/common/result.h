/*
 * The result: one line for people, then, as the last line of standard output,
 *
 *	numalab-result: {"metric": value, ...}
 *
 * Metrics and their units are listed in workloads/catalogue.py. A value that does not exist is null, never 0.
 */
#ifndef NUMALAB_RESULT_H
#define NUMALAB_RESULT_H

#include <stddef.h>
#include <stdint.h>

struct result {
	char *text;
	size_t size;
	void *stream; /* FILE * over text */
	int metrics;
};

void result_begin(struct result *result);
void result_count(struct result *result, const char *metric, uint64_t value);
/* A value that is not finite (a rate over no time, say) is written as null. */
void result_real(struct result *result, const char *metric, double value);
void result_missing(struct result *result, const char *metric);

/* Print the line for people, then the result line; a full disk or closed pipe is a failure. */
void result_print(struct result *result, const char *people, ...) __attribute__((format(printf, 2, 3)));

#endif
