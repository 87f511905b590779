/* Memory policies, by system call: the programs are static and need no libnuma. */
#ifndef NUMALAB_POLICY_H
#define NUMALAB_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#define POLICY_MAX_NODES 1024
#define POLICY_WORDS (POLICY_MAX_NODES / 64)

struct policy {
	int mode; /* MPOL_DEFAULT: nothing is asked for */
	uint64_t nodes[POLICY_WORDS];
};

/*
 * Read "first-touch", "local", "bind:NODES", "interleave:NODES" (NODES such as 0,2-3 or all); a usage_error() naming
 * --`option` when it is none of these or a node has no memory.
 */
struct policy policy_parse(const char *option, const char *text);

/* Does the policy ask for anything? (first-touch does not: the process keeps the policy it was started with) */
bool policy_is_set(const struct policy *policy);

/* Data of [start, start + bytes) go by `policy`; page tables do not, they go by the thread that touches first. */
void policy_of_region(const struct policy *policy, void *start, uint64_t bytes);

/* Memory of this thread and of those it starts, page tables too, goes by `policy`, unless its region has another. */
void policy_of_process(const struct policy *policy);

/* Nodes this process may allocate memory on. */
void policy_allowed_nodes(uint64_t nodes[static POLICY_WORDS]);

/*
 * Count on which nodes `samples` pages lie, one of each of as many stretches of [start, start + bytes); counts[node] for the nodes.
 * Returns false when the kernel cannot tell (no NUMA support).
 */
bool policy_sample_pages(void *start, uint64_t bytes, unsigned int samples, uint64_t counts[static POLICY_MAX_NODES]);

/* The same of every page. */
bool policy_count_pages(void *start, uint64_t bytes, uint64_t counts[static POLICY_MAX_NODES]);

#endif
