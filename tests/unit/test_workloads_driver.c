/*
 * Driver of the workloads' library for the unit tests: exercises what the programs' command lines do not reach.
 * Prints "ok NAME" for each check that holds, and ends with status 1 at the first that does not.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "btree/tree.h"
#include "common/rng.h"
#include "common/team.h"
#include "gups/table.h"
#include "memops/samples.h"
#include "memops/touch.h"
#include "stream/kernels.h"

#define CHECK(condition)                                                      \
	do {                                                                  \
		if (!(condition)) {                                           \
			printf("line %d: %s does not hold\n", __LINE__, #condition); \
			exit(1);                                              \
		}                                                             \
	} while (0)

/* Every size up to some hundreds, and a few around powers of two: a bijection, and its inverse is one. */
static void permutations(void)
{
	static unsigned char seen[70000];

	for (uint64_t size = 1; size < 70000; size += size < 600 ? 1 : size) {
		for (uint64_t seed = 0; seed < 3; seed++) {
			struct permutation p = permutation_make(size, seed);

			memset(seen, 0, sizeof(seen));
			for (uint64_t i = 0; i < size; i++) {
				uint64_t place = permutation_apply(&p, i);

				CHECK(place < size);
				CHECK(!seen[place]);
				seen[place] = 1;
				CHECK(permutation_invert(&p, place) == i);
			}
		}
	}
}

/* A permutation that leaves neighbours neighbours would not spread nodes over the region. */
static void permutation_is_random(void)
{
	struct permutation p = permutation_make(100000, 1);
	uint64_t near = 0;

	for (uint64_t i = 1; i < p.size; i++) {
		uint64_t a = permutation_apply(&p, i - 1), b = permutation_apply(&p, i);

		near += (a > b ? a - b : b - a) < 100;
	}
	CHECK(near < 400); /* 200 expected of 100000 */
}

static void streams_differ(void)
{
	struct rng a = rng_stream(1, 0), b = rng_stream(1, 1), c = rng_stream(2, 0), again = rng_stream(1, 0);

	for (int i = 0; i < 1000; i++) {
		uint64_t x = rng_next(&a);

		CHECK(x == rng_next(&again));
		CHECK(x != rng_next(&b));
		CHECK(x != rng_next(&c));
	}
}

static void below_stays_below(void)
{
	CHECK(rng_below(UINT64_MAX, 10) == 9);
	CHECK(rng_below(0, 10) == 0);
	CHECK(rng_below(UINT64_MAX, UINT64_MAX) == UINT64_MAX - 1);
}

static void shares_cover(void)
{
	const uint64_t totals[] = { 0, 1, 7, 1000, UINT64_MAX / 2 };

	for (unsigned int threads = 1; threads < 9; threads++) {
		for (int i = 0; i < 5; i++) {
			uint64_t at = 0;

			for (unsigned int thread = 0; thread < threads; thread++) {
				struct share share = share_of(totals[i], thread, threads);

				CHECK(share.from == at);
				CHECK(share.to >= share.from);
				at = share.to;
			}
			CHECK(at == totals[i]);
		}
	}
}

static void table_errors_are_counted(void)
{
	uint64_t table[1000];

	table_fill(table, 0, 1000);
	CHECK(table_errors(table, 0, 1000) == 0);
	table_update(table, 1000, 5000, 3, 0);
	CHECK(table_errors(table, 0, 1000) > 900);
	table_update_atomic(table, 1000, 5000, 3, 0);
	CHECK(table_errors(table, 0, 1000) == 0);
	table[17] ^= 1;
	table[999] = 0;
	CHECK(table_errors(table, 0, 1000) == 2);
	CHECK(table_errors(table, 18, 999) == 0);
	table_update(table, 1000, 1, 3, 1);
	CHECK(table_errors(table, 0, 1000) >= 2); /* one update of another stream */
}

/* Built in one piece and in shares in any order: the same bytes. Every key is found, its neighbours are not. */
static void tree_of(uint64_t keys)
{
	struct tree tree = tree_plan(keys, 42);
	struct node *whole = calloc(tree.node_count, sizeof(*whole)), *parts = malloc(tree_bytes(&tree));
	uint64_t value, cut = tree.node_count / 3;

	memset(parts, 0xff, tree_bytes(&tree));
	tree.nodes = parts;
	tree_build(&tree, cut, tree.node_count);
	tree_build(&tree, 0, cut);
	tree.nodes = whole;
	tree_build(&tree, 0, tree.node_count);
	tree.root = &whole[permutation_apply(&tree.order, tree.node_count - 1)];
	for (uint64_t i = 0; i < tree.node_count; i++) {
		CHECK(whole[i].is_leaf == parts[i].is_leaf);
		CHECK(!memcmp(whole[i].keys, parts[i].keys, sizeof(whole[i].keys)));
	}
	for (uint64_t i = 0; i < keys; i++) {
		uint64_t key = tree_key(&tree, i);

		CHECK(!i || key > tree_key(&tree, i - 1));
		CHECK(tree_find(&tree, key, &value));
		CHECK(value == tree_value(&tree, i));
		CHECK(!tree_find(&tree, tree_absent_key(&tree, i), &value));
	}
	CHECK(!tree_find(&tree, UINT64_MAX - 1, &value));
	free(whole);
	free(parts);
}

static void trees(void)
{
	const uint64_t sizes[] = { 1, 2, 14, 15, 16, 239, 240, 241, 3840, 3841, 61441, 100000 };

	for (int i = 0; i < 12; i++)
		tree_of(sizes[i]);
}

static void trees_fit(void)
{
	for (uint64_t bytes = 256; bytes < 3000000; bytes = bytes * 5 / 4 + 13) {
		uint64_t keys = tree_keys_for(bytes);
		struct tree fits = tree_plan(keys, 0), next = tree_plan(keys + 1, 0);

		CHECK(tree_bytes(&fits) <= bytes);
		CHECK(tree_bytes(&next) > bytes);
	}
}

static void stream_errors_are_counted(void)
{
	double a[100], b[100], c[100];
	struct arrays arrays = { a, b, c, 100 };

	arrays_fill(&arrays, 0, 100);
	CHECK(arrays_errors(&arrays, 0, 0, 100) == 0);
	for (int round = 0; round < 3; round++)
		for (enum kernel kernel = COPY; kernel < KERNELS; kernel++)
			kernel_run(kernel, &arrays, 0, 100);
	CHECK(arrays_errors(&arrays, 3, 0, 100) == 0);
	CHECK(a[5] > 0.999 && a[5] < 1.001); /* values keep their size */
	b[7] = -b[7];
	CHECK(arrays_errors(&arrays, 3, 0, 100) == 1);
	kernel_run(ADD, &arrays, 40, 41); /* one kernel too many on one element changes nothing but c */
	CHECK(arrays_errors(&arrays, 3, 40, 41) == 1);
}

static void samples_are_summed_up(void)
{
	struct samples samples = { 0 }, more = { 0 };

	for (uint64_t i = 0; i < 100; i++)
		samples_add(i % 2 ? &samples : &more, 100 - i);
	samples_merge(&samples, &more);
	samples_sort(&samples);
	CHECK(samples.count == 100);
	CHECK(samples_quantile(&samples, 0) == 1);
	CHECK(samples_quantile(&samples, 0.5) == 50);
	CHECK(samples_quantile(&samples, 0.99) == 99);
	CHECK(samples_quantile(&samples, 1) == 100);
	CHECK(samples_mean(&samples) == 50.5);
	CHECK(samples_low(&samples) == 25.5);
	samples.count = 3;
	CHECK(samples_low(&samples) == 1.5);
	samples.count = 1;
	CHECK(samples_low(&samples) == 1);
	free(samples.values);
	free(more.values);
}

/* A page that is not what it should be ends the program: what is called here must not. */
static void regions_are_stamped(void)
{
	struct region region = { .size = 5 * 4096, .page = 4096 };
	struct helpers *helpers;

	region.start = calloc(5, 4096);
	CHECK(region.start);
	region_look_blank(&region);
	region_stamp(&region);
	region_look(&region);
	CHECK(memcmp(region.start, region.start + 4096, 8)); /* each page its own */
	CHECK(!memcmp(region.start + 8, region.start + 4096 + 8, 4088));
	helpers = helpers_start(&region);
	helpers_look(helpers);
	helpers_look(helpers);
	helpers_stop(helpers);
	free(region.start);
}

int main(void)
{
	static const struct {
		const char *name;
		void (*check)(void);
	} checks[] = {
		{ "permutations", permutations },
		{ "permutation_is_random", permutation_is_random },
		{ "streams_differ", streams_differ },
		{ "below_stays_below", below_stays_below },
		{ "shares_cover", shares_cover },
		{ "table_errors_are_counted", table_errors_are_counted },
		{ "trees", trees },
		{ "trees_fit", trees_fit },
		{ "stream_errors_are_counted", stream_errors_are_counted },
		{ "samples_are_summed_up", samples_are_summed_up },
		{ "regions_are_stamped", regions_are_stamped },
	};

	for (size_t i = 0; i < sizeof(checks) / sizeof(*checks); i++) {
		checks[i].check();
		printf("ok %s\n", checks[i].name);
	}
	return 0;
}
