/* The four kernels of STREAM (McCalpin) over parts of three arrays, and the check of their results. */
#ifndef NUMALAB_STREAM_KERNELS_H
#define NUMALAB_STREAM_KERNELS_H

#include <stdint.h>

enum kernel { COPY, SCALE, ADD, TRIAD, KERNELS };

struct arrays {
	double *a, *b, *c;
	uint64_t elements; /* of each array */
};

/* Bytes one element costs: arrays read plus arrays written. */
uint64_t kernel_bytes(enum kernel kernel);
const char *kernel_name(enum kernel kernel);

/* Elements [from, to): a = 1, b = 2, c = 0. */
void arrays_fill(const struct arrays *arrays, uint64_t from, uint64_t to);

/* copy: c = a · scale: b = s*c · add: c = a + b · triad: a = b + s*c, on elements [from, to). */
void kernel_run(enum kernel kernel, const struct arrays *arrays, uint64_t from, uint64_t to);

/* Number of values in [from, to) that differ from what `iterations` rounds of all kernels make of one element. */
uint64_t arrays_errors(const struct arrays *arrays, uint64_t iterations, uint64_t from, uint64_t to);

#endif
