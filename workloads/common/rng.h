/*
 * Deterministic random numbers that split into independent streams, and random permutations that need no memory.
 *
 * The generator is SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA'14): one
 * addition and two multiplications a number, so that it costs little beside the memory access it decides, in
 * emulation too.
 */
#ifndef NUMALAB_RNG_H
#define NUMALAB_RNG_H

#include <stdint.h>

#define RNG_GAMMA 0x9e3779b97f4a7c15u

struct rng {
	uint64_t state;
};

/* A bijection of 64-bit numbers in which every input bit changes half of the output bits. */
static inline uint64_t rng_mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

/* Stream number `stream` of `seed`; the same two numbers give the same stream on every machine. */
static inline struct rng rng_stream(uint64_t seed, uint64_t stream)
{
	return (struct rng){ rng_mix(rng_mix(seed + RNG_GAMMA) + stream * RNG_GAMMA) };
}

static inline uint64_t rng_next(struct rng *rng)
{
	rng->state += RNG_GAMMA;
	return rng_mix(rng->state);
}

/* The number below `bound` that the high bits of `random` choose (a multiplication instead of a division). */
static inline uint64_t rng_below(uint64_t random, uint64_t bound)
{
	return (uint64_t)(((unsigned __int128)random * bound) >> 64);
}

/*
 * A random permutation of 0 .. size-1: a four-round Feistel network on the next even number of bits, repeated until
 * the value falls inside the range (fewer than four times on average).
 */
struct permutation {
	uint64_t size;
	uint64_t half_mask;
	unsigned int half_bits;
	uint64_t keys[4];
};

static inline struct permutation permutation_make(uint64_t size, uint64_t seed)
{
	struct rng rng = rng_stream(seed, 0x7065726d);
	struct permutation p = { .size = size, .half_bits = 1 };

	while (2 * p.half_bits < 64 && (UINT64_C(1) << (2 * p.half_bits)) < size)
		p.half_bits++;
	p.half_mask = (UINT64_C(1) << p.half_bits) - 1;
	for (int round = 0; round < 4; round++)
		p.keys[round] = rng_next(&rng);
	return p;
}

/* Where `index` goes. */
static inline uint64_t permutation_apply(const struct permutation *p, uint64_t index)
{
	do {
		uint64_t left = index >> p->half_bits, right = index & p->half_mask;

		for (int round = 0; round < 4; round++) {
			uint64_t next = left ^ (rng_mix(right ^ p->keys[round]) & p->half_mask);

			left = right;
			right = next;
		}
		index = left << p->half_bits | right;
	} while (index >= p->size);
	return index;
}

/* What permutation_apply() maps to `index`. */
static inline uint64_t permutation_invert(const struct permutation *p, uint64_t index)
{
	do {
		uint64_t left = index >> p->half_bits, right = index & p->half_mask;

		for (int round = 3; round >= 0; round--) {
			uint64_t previous = right ^ (rng_mix(left ^ p->keys[round]) & p->half_mask);

			right = left;
			left = previous;
		}
		index = left << p->half_bits | right;
	} while (index >= p->size);
	return index;
}

#endif
