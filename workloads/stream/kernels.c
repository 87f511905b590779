#include "kernels.h"

/*
 * With McCalpin's scalar of 3 the values grow 15 times a round and overflow after some 260 rounds; interference runs
 * for many more. This one makes (2 + s) * s = 1, so that values keep their size.
 */
#define SCALAR 0.41421356237309515

uint64_t kernel_bytes(enum kernel kernel)
{
	return (kernel == COPY || kernel == SCALE ? 2 : 3) * sizeof(double);
}

const char *kernel_name(enum kernel kernel)
{
	static const char *const names[KERNELS] = { "copy", "scale", "add", "triad" };

	return names[kernel];
}

void arrays_fill(const struct arrays *arrays, uint64_t from, uint64_t to)
{
	for (uint64_t i = from; i < to; i++) {
		arrays->a[i] = 1;
		arrays->b[i] = 2;
		arrays->c[i] = 0;
	}
}

void kernel_run(enum kernel kernel, const struct arrays *arrays, uint64_t from, uint64_t to)
{
	double *restrict a = arrays->a, *restrict b = arrays->b, *restrict c = arrays->c;

	switch (kernel) {
	case COPY:
		for (uint64_t i = from; i < to; i++)
			c[i] = a[i];
		break;
	case SCALE:
		for (uint64_t i = from; i < to; i++)
			b[i] = SCALAR * c[i];
		break;
	case ADD:
		for (uint64_t i = from; i < to; i++)
			c[i] = a[i] + b[i];
		break;
	case TRIAD:
		for (uint64_t i = from; i < to; i++)
			a[i] = b[i] + SCALAR * c[i];
		break;
	case KERNELS:
		break;
	}
}

uint64_t arrays_errors(const struct arrays *arrays, uint64_t iterations, uint64_t from, uint64_t to)
{
	double a = 1, b = 2, c = 0;
	const struct arrays one = { &a, &b, &c, 1 };
	uint64_t errors = 0;

	/* The same operations in the same order on one element: results are equal to the last bit. */
	for (uint64_t i = 0; i < iterations; i++)
		for (enum kernel kernel = COPY; kernel < KERNELS; kernel++)
			kernel_run(kernel, &one, 0, 1);
	for (uint64_t i = from; i < to; i++)
		errors += (uint64_t)((arrays->a[i] != a) + (arrays->b[i] != b) + (arrays->c[i] != c));
	return errors;
}
