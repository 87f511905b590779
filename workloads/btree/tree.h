/*
 * A B+-tree in one region of memory, its nodes in random order, as a tree has them that grew by inserting random keys.
 *
 * It is loaded in bulk: key and value number i are functions of i, so that each node can be computed from its number
 * alone, threads can build shares of the region in one pass over it, and every lookup can be checked.
 */
#ifndef NUMALAB_BTREE_TREE_H
#define NUMALAB_BTREE_TREE_H

#include <stdbool.h>
#include <stdint.h>

#include "../common/rng.h"

#define NODE_KEYS 15
#define NODE_CHILDREN (NODE_KEYS + 1)
#define TREE_MAX_DEPTH 24

/* 256 bytes, four cache lines. Unused keys are UINT64_MAX, which no key is. */
struct node {
	uint64_t is_leaf;
	uint64_t keys[NODE_KEYS]; /* inner node: keys[j] is the smallest key below children[j + 1] */
	union {
		struct node *children[NODE_CHILDREN];
		uint64_t values[NODE_CHILDREN];
	};
};

struct tree {
	struct node *nodes; /* the region */
	uint64_t keys;
	uint64_t node_count;
	unsigned int depth; /* levels; 1: the root is a leaf */
	/* Level 0 is the leaves. Nodes are numbered level by level; first[level] is the level's first number. */
	uint64_t first[TREE_MAX_DEPTH + 1];
	struct permutation order; /* node number -> place in the region */
	uint64_t seed;
	uint64_t stride; /* key number i lies in [i * stride, (i + 1) * stride) */
	struct node *root;
};

/* Shape of a tree of `keys` keys (at least 1); `nodes` stays NULL until the caller has mapped tree_bytes(). */
struct tree tree_plan(uint64_t keys, uint64_t seed);

/* Bytes of the region the tree needs. */
uint64_t tree_bytes(const struct tree *tree);

/* The most keys whose tree fits `bytes`, 0 when not even one node does. */
uint64_t tree_keys_for(uint64_t bytes);

/* Write the nodes at places [from, to) of the region. */
void tree_build(struct tree *tree, uint64_t from, uint64_t to);

/* Key and value number `index`; a key that is not in the tree lies right behind key number `index`. */
uint64_t tree_key(const struct tree *tree, uint64_t index);
uint64_t tree_absent_key(const struct tree *tree, uint64_t index);
uint64_t tree_value(const struct tree *tree, uint64_t index);

/* Look `key` up; true and its value when it is there. */
bool tree_find(const struct tree *tree, uint64_t key, uint64_t *value);

#endif
