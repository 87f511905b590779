/* BTree: lookups of random keys in a B+-tree larger than any cache; every lookup is checked. */
#include <inttypes.h>

#include "../common/clock.h"
#include "../common/fail.h"
#include "../common/ksm.h"
#include "../common/marks.h"
#include "../common/result.h"
#include "../common/setup.h"
#include "../common/team.h"
#include "../common/watch.h"
#include "tree.h"

/* Lookups between two that are told to the watch. */
#define TOLD 256

struct btree {
	struct tree tree;
	uint64_t lookups;
	uint64_t miss_percent;
	/* Sums over the threads. */
	uint64_t expected, found, wrong;
};

static void build(void *context, unsigned int thread, unsigned int threads)
{
	struct btree *btree = context;
	struct share share = share_of(btree->tree.node_count, thread, threads);

	tree_build(&btree->tree, share.from, share.to);
}

static void look_up(void *context, unsigned int thread, unsigned int threads)
{
	struct btree *btree = context;
	const struct tree *tree = &btree->tree;
	struct share share = share_of(btree->lookups, thread, threads);
	struct rng rng = rng_stream(tree->seed, thread);
	uint64_t expected = 0, found = 0, wrong = 0;

	for (uint64_t i = share.from; i < share.to; i++) {
		uint64_t random = rng_next(&rng), index = rng_below(random, tree->keys), value;
		/* Low bits choose hit or miss, high bits the key. */
		bool miss = btree->miss_percent && (random & 0xffff) % 100 < btree->miss_percent;

		if (i % TOLD == TOLD - 1)
			watch_add(thread, TOLD);
		expected += !miss;
		if (!tree_find(tree, miss ? tree_absent_key(tree, index) : tree_key(tree, index), &value))
			continue;
		found++;
		wrong += miss || value != tree_value(tree, index);
	}
	__atomic_fetch_add(&btree->expected, expected, __ATOMIC_RELAXED);
	__atomic_fetch_add(&btree->found, found, __ATOMIC_RELAXED);
	__atomic_fetch_add(&btree->wrong, wrong, __ATOMIC_RELAXED);
}

int main(int argc, char **argv)
{
	uint64_t size = UINT64_C(64) << 20, keys = 0, settle = 0;
	double interval = 0;
	struct btree btree = { .lookups = 1000000 };
	enum { SIZE_ROW, KEYS_ROW };
	struct option_row rows[] = {
		{ "size", OPTION_SIZE, &size, "SIZE", "size of the tree: as many keys as fit (default 64M)",
		  sizeof(struct node), UINT64_C(1) << 55, false },
		{ "keys", OPTION_COUNT, &keys, "N", "number of keys, instead of --size", 1, UINT64_C(1) << 48, false },
		{ "lookups", OPTION_COUNT, &btree.lookups, "N", "number of lookups, all threads together (default 1M)",
		  1, 0, false },
		{ "misses", OPTION_COUNT, &btree.miss_percent, "PERCENT",
		  "share of lookups for a key that is not there (default 0)", 0, 100, false },
		{ "settle", OPTION_COUNT, &settle, "PASSES",
		  "before the first lookup wait for so many passes of KSM, where it runs (default 0)", 0, 0, false },
		{ "interval", OPTION_SECONDS, &interval, "S",
		  "a line on progress and placement each so many seconds (default: none)", 0, 0, false },
		{ 0 },
	};
	struct tree *tree = &btree.tree;
	struct setup setup;
	struct result result;
	struct phase phase;
	struct team *team;
	double init_seconds;

	setup_parse(&setup, SETUP_REGION, argc, argv, "btree", "Random lookups in a large in-memory B+-tree.", rows);
	if (rows[SIZE_ROW].given && rows[KEYS_ROW].given)
		usage_error("--keys and --size both say how large the tree is: give one of them");
	*tree = tree_plan(keys ? keys : tree_keys_for(size), setup.seed);
	team = team_start(&setup);
	mark("init");
	tree->nodes = setup_region(&setup, tree_bytes(tree));
	tree->root = &tree->nodes[permutation_apply(&tree->order, tree->node_count - 1)];
	init_seconds = team_initialise(team, &setup, build, &btree);

	mark("ready");
	ksm_settle(settle);
	phase_start(&phase);
	watch_start(setup.threads, interval, tree->nodes, tree_bytes(tree));
	team_run(team, look_up, &btree);
	phase_stop(&phase);
	watch_stop();
	result_begin(&result);
	result_count(&result, "lookups", btree.lookups);
	result_real(&result, "lookups_per_second", (double)btree.lookups / phase.seconds);
	result_count(&result, "found", btree.found);
	result_count(&result, "errors", btree.wrong + (btree.found != btree.expected));
	result_count(&result, "keys", tree->keys);
	result_count(&result, "nodes", tree->node_count);
	result_count(&result, "depth", tree->depth);
	result_count(&result, "tree_bytes", tree_bytes(tree));
	phase_report(&phase, init_seconds, &result);
	region_report(tree->nodes, tree_bytes(tree), &result);
	/* What belongs to all processes together is read before one of them may end. */
	if (setup.mergeable != MERGE_NO)
		ksm_report(&result);
	mark("done");
	team_stop(team);
	result_print(&result, "%" PRIu64 " lookups among %" PRIu64 " keys (%u levels, %" PRIu64 " MiB) in %.3f s, %" PRIu64
			      " found",
		     btree.lookups, tree->keys, tree->depth, tree_bytes(tree) >> 20, phase.seconds, btree.found);
	if (btree.wrong)
		fail("%" PRIu64 " lookups returned a wrong value", btree.wrong);
	if (btree.found != btree.expected)
		fail("%" PRIu64 " keys should have been found, %" PRIu64 " were", btree.expected, btree.found);
	return 0;
}
