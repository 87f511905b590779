#include "tree.h"

#include <stddef.h>

static uint64_t div_up(uint64_t a, uint64_t b)
{
	return a / b + (a % b != 0);
}

struct tree tree_plan(uint64_t keys, uint64_t seed)
{
	struct tree tree = { .keys = keys, .seed = seed };
	uint64_t nodes = div_up(keys, NODE_KEYS);

	for (;;) {
		tree.first[tree.depth + 1] = tree.first[tree.depth] + nodes;
		tree.depth++;
		if (nodes == 1)
			break;
		nodes = div_up(nodes, NODE_CHILDREN);
	}
	tree.node_count = tree.first[tree.depth];
	tree.order = permutation_make(tree.node_count, seed);
	/* Keys stay below 2^63: UINT64_MAX is free to mean "none". */
	tree.stride = (UINT64_C(1) << 63) / keys;
	return tree;
}

uint64_t tree_bytes(const struct tree *tree)
{
	return tree->node_count * sizeof(struct node);
}

uint64_t tree_keys_for(uint64_t bytes)
{
	uint64_t low = 0, high = bytes / sizeof(struct node) * NODE_KEYS;

	while (low < high) {
		uint64_t middle = high - (high - low) / 2;
		struct tree tree = tree_plan(middle, 0);

		if (tree_bytes(&tree) <= bytes)
			low = middle;
		else
			high = middle - 1;
	}
	return low;
}

static uint64_t jitter(const struct tree *tree, uint64_t index)
{
	return rng_below(rng_mix(index + tree->seed * RNG_GAMMA), tree->stride);
}

uint64_t tree_key(const struct tree *tree, uint64_t index)
{
	return index * tree->stride + jitter(tree, index);
}

uint64_t tree_absent_key(const struct tree *tree, uint64_t index)
{
	/* Key number `index` is the only one in its stride. */
	return index * tree->stride + (jitter(tree, index) + 1) % tree->stride;
}

uint64_t tree_value(const struct tree *tree, uint64_t index)
{
	return rng_mix(tree_key(tree, index) ^ tree->seed);
}

static struct node *node_numbered(const struct tree *tree, uint64_t number)
{
	return &tree->nodes[permutation_apply(&tree->order, number)];
}

/* Smallest key below node `position` of `level`. */
static uint64_t smallest_key(const struct tree *tree, unsigned int level, uint64_t position)
{
	for (; level; level--)
		position *= NODE_CHILDREN;
	return tree_key(tree, position * NODE_KEYS);
}

static void build_leaf(const struct tree *tree, struct node *node, uint64_t position)
{
	uint64_t index = position * NODE_KEYS;

	node->is_leaf = 1;
	for (int i = 0; i < NODE_KEYS; i++, index++) {
		node->keys[i] = index < tree->keys ? tree_key(tree, index) : UINT64_MAX;
		node->values[i] = index < tree->keys ? tree_value(tree, index) : 0;
	}
}

static void build_inner(const struct tree *tree, struct node *node, unsigned int level, uint64_t position)
{
	uint64_t below = tree->first[level] - tree->first[level - 1];
	uint64_t child = position * NODE_CHILDREN;

	node->is_leaf = 0;
	for (int i = 0; i < NODE_CHILDREN; i++, child++) {
		bool exists = child < below;

		node->children[i] = exists ? node_numbered(tree, tree->first[level - 1] + child) : NULL;
		if (i)
			node->keys[i - 1] = exists ? smallest_key(tree, level - 1, child) : UINT64_MAX;
	}
}

void tree_build(struct tree *tree, uint64_t from, uint64_t to)
{
	for (uint64_t place = from; place < to; place++) {
		uint64_t number = permutation_invert(&tree->order, place);
		unsigned int level = 0;

		while (number >= tree->first[level + 1])
			level++;
		if (level)
			build_inner(tree, &tree->nodes[place], level, number - tree->first[level]);
		else
			build_leaf(tree, &tree->nodes[place], number);
	}
}

/* Number of keys in the node that are at most `key`: 15 keys take exactly four steps, without a branch. */
static unsigned int rank_of(const struct node *node, uint64_t key)
{
	unsigned int rank = 0;

	for (unsigned int step = 8; step; step /= 2)
		rank += node->keys[rank + step - 1] <= key ? step : 0;
	return rank;
}

bool tree_find(const struct tree *tree, uint64_t key, uint64_t *value)
{
	const struct node *node = tree->root;
	unsigned int rank = rank_of(node, key);

	while (!node->is_leaf) {
		node = node->children[rank];
		rank = rank_of(node, key);
	}
	if (!rank || node->keys[rank - 1] != key)
		return false;
	*value = node->values[rank - 1];
	return true;
}
