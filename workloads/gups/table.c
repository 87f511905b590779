#include "table.h"

#include "../common/rng.h"

void table_fill(uint64_t *table, uint64_t from, uint64_t to)
{
	for (uint64_t i = from; i < to; i++)
		table[i] = i;
}

void table_update(uint64_t *table, uint64_t words, uint64_t updates, uint64_t seed, uint64_t stream)
{
	struct rng rng = rng_stream(seed, stream);

	for (; updates; updates--) {
		uint64_t random = rng_next(&rng);

		table[rng_below(random, words)] ^= random;
	}
}

void table_update_atomic(uint64_t *table, uint64_t words, uint64_t updates, uint64_t seed, uint64_t stream)
{
	struct rng rng = rng_stream(seed, stream);

	for (; updates; updates--) {
		uint64_t random = rng_next(&rng);

		__atomic_fetch_xor(&table[rng_below(random, words)], random, __ATOMIC_RELAXED);
	}
}

uint64_t table_errors(const uint64_t *table, uint64_t from, uint64_t to)
{
	uint64_t errors = 0;

	for (uint64_t i = from; i < to; i++)
		errors += table[i] != i;
	return errors;
}
