#define _GNU_SOURCE
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../common/fail.h"
#include "../common/rng.h"
#include "region.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

/* Pages that one step changes at most, and steps between two checks of everything. */
#define STRETCH 32
#define STEPS 48
/* Times that all pages are read between two steps: pages that nobody uses are nobody's, and are not copied. */
#define GLANCES 8
/* Processes leave after so many of their turns to leave. */
#define LEAVES_IN 4
#define KILL_AFTER_US 20000
/* Reclaim of the whole machine's memory (cgroup v2). */
#define RECLAIM "/sys/fs/cgroup/memory.reclaim"

const char *const way_names[WAYS] = { "merge", "unmerge", "fork", "exit", "migrate", "swap" };

struct worker {
	struct churn *churn;
	struct slot *slot;
	struct region region;
	struct rng rng;
	uint64_t own; /* contents of its own that were given */
	char who[32];
};

/* Pages [from, to). */
struct stretch {
	uint64_t from, to;
};

static uint64_t below(struct worker *worker, uint64_t bound)
{
	return rng_below(rng_next(&worker->rng), bound);
}

static struct stretch some(struct worker *worker)
{
	uint64_t from = below(worker, worker->region.count), length = 1 + below(worker, STRETCH);

	return (struct stretch){ from, from + length < worker->region.count ? from + length : worker->region.count };
}

static void *start_of(struct worker *worker, uint64_t page)
{
	return worker->region.words + page * worker->region.page_words;
}

static uint64_t bytes_of(struct worker *worker, struct stretch stretch)
{
	return (stretch.to - stretch.from) * worker->region.page_words * sizeof(uint64_t);
}

static void check(struct worker *worker, struct stretch stretch)
{
	region_check(&worker->region, stretch.from, stretch.to, worker->who);
	worker->slot->checks += stretch.to - stretch.from;
}

static void advise(struct worker *worker, struct stretch stretch, int advice)
{
	/* EAGAIN: no memory for it just now, which churn does not promise. */
	if (madvise(start_of(worker, stretch.from), bytes_of(worker, stretch), advice) && errno != EAGAIN &&
	    errno != ENOMEM)
		fail("%s: madvise %d: %s", worker->who, advice, strerror(errno));
}

/* Contents that others have too; most stretches repeat, so that one page has many sharers. */
static void merge(struct worker *worker)
{
	struct stretch stretch = some(worker);
	uint64_t content = below(worker, COMMON);
	bool same = below(worker, 2);

	for (uint64_t page = stretch.from; page < stretch.to; page++)
		region_write(&worker->region, page, same ? content : (page + content) % COMMON);
	advise(worker, stretch, MADV_MERGEABLE);
}

static uint64_t own_content(struct worker *worker)
{
	return COMMON + ((uint64_t)getpid() << 32) + worker->own++;
}

/* By a write to each page, or at once. */
static void unmerge(struct worker *worker)
{
	struct stretch stretch = some(worker);

	if (below(worker, 2)) {
		for (uint64_t page = stretch.from; page < stretch.to; page++)
			region_write(&worker->region, page, own_content(worker));
		return;
	}
	advise(worker, stretch, MADV_UNMERGEABLE);
	check(worker, stretch);
	if (below(worker, 2))
		advise(worker, stretch, MADV_MERGEABLE);
}

/* What a child does until it ends or is killed: reads what it has, writes, and reads again. */
static void child(struct worker *worker, bool forever)
{
	snprintf(worker->who, sizeof(worker->who), "a child");
	do {
		struct stretch stretch = some(worker);

		region_check(&worker->region, stretch.from, stretch.to, worker->who);
		for (uint64_t page = stretch.from; page < stretch.to; page++)
			region_write(&worker->region, page,
				     below(worker, 2) ? own_content(worker) : below(worker, COMMON));
		region_check(&worker->region, stretch.from, stretch.to, worker->who);
	} while (forever || below(worker, 4));
	region_check(&worker->region, 0, worker->region.count, worker->who);
	_exit(0);
}

static void fork_one(struct worker *worker)
{
	bool killed = below(worker, 2);
	int status;
	pid_t pid = fork();

	if (pid < 0) {
		if (errno == EAGAIN || errno == ENOMEM)
			return;
		fail("%s: fork: %s", worker->who, strerror(errno));
	}
	if (!pid)
		child(worker, killed);
	/* Copy on write from both sides. */
	merge(worker);
	unmerge(worker);
	if (killed) {
		usleep((useconds_t)below(worker, KILL_AFTER_US));
		kill(pid, SIGKILL);
	}
	if (waitpid(pid, &status, 0) != pid)
		fail("%s: waitpid: %s", worker->who, strerror(errno));
	if (WIFSIGNALED(status) ? !killed || WTERMSIG(status) != SIGKILL : WEXITSTATUS(status))
		fail("%s: its child ended with status %#x", worker->who, (unsigned int)status);
}

/* Orderly, or as if killed; in the middle of what others do to the pages that it shares with them. */
static void leave(struct worker *worker)
{
	if (below(worker, LEAVES_IN))
		return;
	check(worker, (struct stretch){ 0, worker->region.count });
	worker->slot->done[WAY_EXIT]++;
	__atomic_store_n(&worker->slot->leaves, true, __ATOMIC_RELEASE);
	if (below(worker, 2))
		raise(SIGKILL);
	_exit(0);
}

/* A node that is chosen at random, as a policy with one bit. */
static struct policy some_node(struct worker *worker)
{
	struct policy policy = { .mode = MPOL_PREFERRED };
	uint64_t nodes[POLICY_WORDS], count = 0;

	policy_allowed_nodes(nodes);
	for (int word = 0; word < POLICY_WORDS; word++)
		count += (uint64_t)__builtin_popcountll(nodes[word]);
	count = count ? below(worker, count) : 0;
	for (int node = 0; node < POLICY_MAX_NODES; node++)
		if (nodes[node / 64] >> (node % 64) & 1 && !count--)
			policy.nodes[node / 64] |= UINT64_C(1) << (node % 64);
	return policy;
}

static void move_process(struct worker *worker)
{
	uint64_t cpus = (uint64_t)sysconf(_SC_NPROCESSORS_ONLN);
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(below(worker, cpus < CPU_SETSIZE ? cpus : CPU_SETSIZE), &set);
	/* A CPU that this process may not use is none to move to. */
	(void)sched_setaffinity(0, sizeof(set), &set);
}

/* Pages to a node (then its policy is forgotten, KSM is free to move them), or the process to a CPU. */
static void migrate(struct worker *worker)
{
	struct stretch stretch = some(worker);
	struct policy policy = some_node(worker);
	void *start = start_of(worker, stretch.from);
	uint64_t bytes = bytes_of(worker, stretch);

	if (!below(worker, 3)) {
		move_process(worker);
		return;
	}
	/* Flags: MPOL_MF_MOVE, or MPOL_MF_MOVE_ALL for pages of others too; EIO: a page was held just now. */
	if (syscall(SYS_mbind, start, bytes, MPOL_PREFERRED, policy.nodes, POLICY_MAX_NODES + 1,
		    below(worker, 2) ? MPOL_MF_MOVE : MPOL_MF_MOVE_ALL) &&
	    errno != EIO && errno != ENOMEM && errno != EPERM && errno != ENOSYS)
		fail("%s: mbind: %s", worker->who, strerror(errno));
	if (syscall(SYS_mbind, start, bytes, MPOL_DEFAULT, NULL, 0, 0) && errno != ENOMEM && errno != ENOSYS)
		fail("%s: mbind to the default: %s", worker->who, strerror(errno));
	check(worker, stretch);
}

/* Own pages by advice; merged ones, which advice leaves alone, by reclaim of everybody's. */
static void swap_out(struct worker *worker)
{
	struct stretch stretch = some(worker);
	char text[32];
	int file;

	if (below(worker, 2)) {
		(void)madvise(start_of(worker, stretch.from), bytes_of(worker, stretch), MADV_PAGEOUT);
	} else {
		file = open(RECLAIM, O_WRONLY | O_CLOEXEC);
		if (file >= 0) {
			int length = snprintf(text, sizeof(text), "%" PRIu64 " swappiness=200",
					      4 * bytes_of(worker, stretch));

			/* EAGAIN: less than that was reclaimed; EINVAL: a kernel that takes no swappiness. */
			if (write(file, text, (size_t)length) < 0 && errno == EINVAL)
				(void)!write(file, text, strcspn(text, " "));
			close(file);
		}
	}
	check(worker, stretch);
}

static void step(struct worker *worker)
{
	static void (*const ways[WAYS])(struct worker *) = { merge, unmerge, fork_one, leave, migrate, swap_out };
	/* Merging is slow, and what takes apart must not have it all. */
	uint64_t way = below(worker, WAYS + 2);

	way = way < WAYS ? way : WAY_MERGE;
	if (!(worker->churn->ways >> way & 1))
		return;
	ways[way](worker);
	if (way != WAY_EXIT)
		worker->slot->done[way]++;
}

static int phase_now(const struct worker *worker)
{
	return __atomic_load_n(worker->churn->phase, __ATOMIC_ACQUIRE);
}

static void work(struct worker *worker)
{
	for (int steps = 0; steps < STEPS && churn_works(phase_now(worker)); steps++) {
		step(worker);
		for (int glances = 0; glances < GLANCES; glances++)
			region_glance(&worker->region, below(worker, worker->region.page_words), worker->who);
		if (worker->churn->rest_ms)
			usleep((useconds_t)worker->churn->rest_ms * 1000);
	}
	check(worker, (struct stretch){ 0, worker->region.count });
}

static void stand_still(struct worker *worker, int phase)
{
	check(worker, (struct stretch){ 0, worker->region.count });
	__atomic_store_n(&worker->slot->waits, phase, __ATOMIC_RELEASE);
	while (phase_now(worker) == phase)
		usleep(1000);
}

void worker_run(struct churn *churn, unsigned int number)
{
	struct worker worker = { .churn = churn, .slot = &churn->slots[number] };
	struct region *region = &worker.region;
	uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
	int phase;

	snprintf(worker.who, sizeof(worker.who), "process %u", number);
	worker.rng = rng_stream(churn->setup.seed + number, worker.slot->generation);
	setup_pin(setup_cpu(&churn->setup, number));
	region->count = churn->pages;
	region->page_words = page_bytes / sizeof(uint64_t);
	region->seed = rng_mix(churn->setup.seed + RNG_GAMMA);
	region->contents = calloc(region->count, sizeof(*region->contents));
	if (!region->contents)
		fail("%s: no memory for %" PRIu64 " numbers", worker.who, region->count);
	region->words = setup_region(&churn->setup, region->count * page_bytes);
	for (uint64_t page = 0; page < region->count; page++)
		region_write(region, page, page % COMMON);
	while ((phase = phase_now(&worker)) != CHURN_END) {
		if (churn_works(phase))
			work(&worker);
		else
			stand_still(&worker, phase);
	}
	check(&worker, (struct stretch){ 0, region->count });
}
