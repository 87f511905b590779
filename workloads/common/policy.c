#include "policy.h"

#include <errno.h>
#include <linux/mempolicy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fail.h"
#include "options.h"
#include "rng.h"

/* The kernel reads one bit less than it is told to. */
#define MAXNODE (POLICY_MAX_NODES + 1)

static bool node_in(const uint64_t *nodes, uint64_t node)
{
	return nodes[node / 64] >> (node % 64) & 1;
}

void policy_allowed_nodes(uint64_t nodes[static POLICY_WORDS])
{
	memset(nodes, 0, POLICY_WORDS * sizeof(*nodes));
	if (syscall(SYS_get_mempolicy, NULL, nodes, POLICY_MAX_NODES, NULL, MPOL_F_MEMS_ALLOWED))
		nodes[0] = 1; /* a kernel without NUMA has node 0 */
}

struct node_list {
	const char *option;
	uint64_t allowed[POLICY_WORDS];
	struct policy *policy;
};

static void add_node(uint64_t node, void *context)
{
	struct node_list *list = context;

	if (node >= POLICY_MAX_NODES || !node_in(list->allowed, node)) {
		char known[256] = "";
		size_t used = 0;

		for (uint64_t i = 0; i < POLICY_MAX_NODES && used < sizeof(known) - 8; i++)
			if (node_in(list->allowed, i))
				used += (size_t)sprintf(known + used, " %u", (unsigned int)i);
		usage_error("--%s: node %llu has no memory to be used here (these have:%s)", list->option,
			    (unsigned long long)node, known);
	}
	list->policy->nodes[node / 64] |= UINT64_C(1) << (node % 64);
}

struct policy policy_parse(const char *option, const char *text)
{
	struct policy policy = { .mode = MPOL_DEFAULT };
	struct node_list list = { .option = option, .policy = &policy };
	const char *nodes = strchr(text, ':');
	char what[64];

	if (!strcmp(text, "first-touch"))
		return policy;
	if (!strcmp(text, "local")) {
		policy.mode = MPOL_LOCAL;
		return policy;
	}
	if (nodes && !strncmp(text, "bind:", 5))
		policy.mode = MPOL_BIND;
	else if (nodes && !strncmp(text, "interleave:", 11))
		policy.mode = MPOL_INTERLEAVE;
	else
		usage_error("--%s: '%s' is not first-touch, local, bind:NODES or interleave:NODES", option, text);
	policy_allowed_nodes(list.allowed);
	if (!strcmp(nodes + 1, "all")) {
		memcpy(policy.nodes, list.allowed, sizeof(policy.nodes));
	} else {
		snprintf(what, sizeof(what), "--%s", option);
		list_parse(what, nodes + 1, add_node, &list);
	}
	return policy;
}

bool policy_is_set(const struct policy *policy)
{
	return policy->mode != MPOL_DEFAULT;
}

/* MPOL_LOCAL takes no nodes. */
static const uint64_t *mask_of(const struct policy *policy)
{
	return policy->mode == MPOL_LOCAL ? NULL : policy->nodes;
}

void policy_of_region(const struct policy *policy, void *start, uint64_t bytes)
{
	const uint64_t *mask = mask_of(policy);

	if (policy_is_set(policy) && syscall(SYS_mbind, start, bytes, policy->mode, mask, mask ? MAXNODE : 0, 0))
		fail("cannot set the memory policy of the data (mbind): %s", strerror(errno));
}

void policy_of_process(const struct policy *policy)
{
	const uint64_t *mask = mask_of(policy);

	if (policy_is_set(policy) && syscall(SYS_set_mempolicy, policy->mode, mask, mask ? MAXNODE : 0))
		fail("cannot set the memory policy of the process (set_mempolicy): %s", strerror(errno));
}

bool policy_sample_pages(void *start, uint64_t bytes, unsigned int samples, uint64_t counts[static POLICY_MAX_NODES])
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), pages = bytes / page;
	void **addresses;
	int *status;
	bool known;

	if (samples > pages)
		samples = (unsigned int)pages;
	addresses = calloc(samples + 1, sizeof(*addresses));
	status = calloc(samples + 1, sizeof(*status));
	if (!addresses || !status)
		fail("no memory for the list of sampled pages");
	/* A random page of each stretch: every n-th page would meet one node of interleaved memory only. */
	for (unsigned int i = 0; i < samples; i++) {
		uint64_t from = pages * i / samples, to = pages * (i + 1) / samples;

		addresses[i] = (char *)start + (from + rng_below(rng_mix(i + RNG_GAMMA), to - from)) * page;
	}
	memset(counts, 0, POLICY_MAX_NODES * sizeof(*counts));
	known = !syscall(SYS_move_pages, 0, (unsigned long)samples, addresses, NULL, status, 0);
	for (unsigned int i = 0; known && i < samples; i++)
		if (status[i] >= 0 && status[i] < POLICY_MAX_NODES)
			counts[status[i]]++;
	free(addresses);
	free(status);
	return known;
}

bool policy_count_pages(void *start, uint64_t bytes, uint64_t counts[static POLICY_MAX_NODES])
{
	enum { BATCH = 1024 };
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), pages = bytes / page;
	void *addresses[BATCH];
	int status[BATCH];

	memset(counts, 0, POLICY_MAX_NODES * sizeof(*counts));
	for (uint64_t done = 0; done < pages; done += BATCH) {
		unsigned long count = pages - done < BATCH ? pages - done : BATCH;

		for (unsigned long i = 0; i < count; i++)
			addresses[i] = (char *)start + (done + i) * page;
		if (syscall(SYS_move_pages, 0, count, addresses, NULL, status, 0))
			return false;
		for (unsigned long i = 0; i < count; i++)
			if (status[i] >= 0 && status[i] < POLICY_MAX_NODES)
				counts[status[i]]++;
	}
	return true;
}
