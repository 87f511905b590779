/*
 * memops: what mmap, mprotect, munmap, page faults and fork cost on a region of a given size (Mitosis, table 5).
 *
 * Work goes in batches. A batch maps and populates --batch regions, then (as far as asked for) forks, protects and
 * unmaps each; then maps as many again without populating and touches every page. Operations that are not asked for
 * are done where they are needed, but not timed. Between "OP-begin" and "OP-end" (--mark-ops) all threads do OP and
 * nothing else, so that instructions and counters taken at these marks belong to it.
 *
 * With --count it goes another way (counted.c): instructions instead of nanoseconds, one region after the other.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../common/clock.h"
#include "../common/fail.h"
#include "../common/marks.h"
#include "../common/result.h"
#include "memops.h"

#define MAX_BATCH 4096 /* size * batch * threads stays below 2^64 */

const char *const op_names[OPS] = { "mmap", "mprotect", "munmap", "fault", "fork", "forkexit" };

/* One thread's batch. */
struct batch {
	struct memops *memops;
	unsigned int thread;
	uint64_t regions;
	char *starts[];
};

char *map_region(const struct memops *memops, char *where, bool populated)
{
	/* A memory policy and advice must come before the pages: then populating is a step of its own. */
	bool advice = setup_needs_advice(memops->setup);
	int flags = MAP_ANONYMOUS | (memops->shared ? MAP_SHARED : MAP_PRIVATE);
	char *start;

	if (where)
		flags |= MAP_FIXED_NOREPLACE;
	if (populated && !advice)
		flags |= MAP_POPULATE;
	start = mmap(where, memops->size, PROT_READ | PROT_WRITE, flags, -1, 0);
	if (start == MAP_FAILED)
		fail("mmap of %" PRIu64 " bytes: %s", memops->size, strerror(errno));
	if (advice) {
		setup_advise(memops->setup, start, memops->size);
		if (populated && madvise(start, memops->size, MADV_POPULATE_WRITE))
			fail("populating %" PRIu64 " bytes: %s", memops->size, strerror(errno));
	}
	return start;
}

static void do_mmap(struct batch *batch, uint64_t i)
{
	batch->starts[i] = map_region(batch->memops, NULL, true);
}

static void do_mprotect(struct batch *batch, uint64_t i)
{
	if (mprotect(batch->starts[i], batch->memops->size, PROT_READ))
		fail("mprotect of %" PRIu64 " bytes: %s", batch->memops->size, strerror(errno));
}

static void do_munmap(struct batch *batch, uint64_t i)
{
	if (munmap(batch->starts[i], batch->memops->size))
		fail("munmap of %" PRIu64 " bytes: %s", batch->memops->size, strerror(errno));
}

static void do_fault(struct batch *batch, uint64_t i)
{
	const struct memops *memops = batch->memops;
	volatile char *start = batch->starts[i];

	for (uint64_t offset = 0; offset < memops->size; offset += memops->page)
		start[offset] = 1;
}

/* The time is the parent's: copying the page tables. The child ends at once and is waited for by wait_for_child(). */
static void do_fork(struct batch *batch, uint64_t i)
{
	pid_t child = fork();

	(void)batch, (void)i;
	if (!child)
		_exit(0);
	if (child < 0)
		fail("fork: %s", strerror(errno));
}

void wait_for_child(void)
{
	int status;
	pid_t child;

	do {
		child = wait(&status);
	} while (child < 0 && errno == EINTR);
	if (child < 0 || status)
		fail("a forked child did not end well (status %d)", status);
}

static void do_forkexit(struct batch *batch, uint64_t i)
{
	do_fork(batch, i);
	wait_for_child();
}

static void mark_op(const struct batch *batch, enum op op, const char *where)
{
	char name[32];

	if (!batch->memops->mark_ops)
		return;
	team_barrier(batch->memops->team);
	if (!batch->thread) {
		snprintf(name, sizeof(name), "%s-%s", op_names[op], where);
		mark(name);
	}
	team_barrier(batch->memops->team);
}

/* Do `op` on each region of the batch; time, keep and mark it if it is asked for. */
static void each(struct batch *batch, enum op op, void (*function)(struct batch *, uint64_t))
{
	struct samples *samples = &batch->memops->samples[batch->thread][op];

	if (!wanted(batch->memops, op)) {
		for (uint64_t i = 0; i < batch->regions; i++)
			function(batch, i);
		return;
	}
	mark_op(batch, op, "begin");
	for (uint64_t i = 0; i < batch->regions; i++) {
		uint64_t began = clock_ns();

		function(batch, i);
		samples_add(samples, clock_ns() - began);
		if (op == FORK)
			wait_for_child();
	}
	mark_op(batch, op, "end");
}

static void run_batch(struct batch *batch)
{
	const struct memops *memops = batch->memops;

	if (memops->ops & ~(UINT64_C(1) << FAULT)) {
		each(batch, MMAP, do_mmap);
		if (wanted(memops, FORK))
			each(batch, FORK, do_fork);
		if (wanted(memops, FORKEXIT))
			each(batch, FORKEXIT, do_forkexit);
		if (wanted(memops, MPROTECT))
			each(batch, MPROTECT, do_mprotect);
		each(batch, MUNMAP, do_munmap);
	}
	if (wanted(memops, FAULT)) {
		for (uint64_t i = 0; i < batch->regions; i++)
			batch->starts[i] = map_region(memops, NULL, false);
		each(batch, FAULT, do_fault);
		for (uint64_t i = 0; i < batch->regions; i++)
			do_munmap(batch, i);
	}
}

static void work(void *context, unsigned int thread, unsigned int threads)
{
	struct memops *memops = context;
	struct batch *batch = malloc(sizeof(*batch) + memops->batch * sizeof(*batch->starts));

	(void)threads;
	if (!batch)
		fail("no memory for a batch");
	batch->memops = memops;
	batch->thread = thread;
	for (uint64_t done = 0; done < memops->iterations; done += batch->regions) {
		batch->regions = memops->iterations - done;
		if (batch->regions > memops->batch)
			batch->regions = memops->batch;
		run_batch(batch);
	}
	free(batch);
}

int main(int argc, char **argv)
{
	struct memops memops = {
		.size = UINT64_C(8) << 20, .iterations = 100, .batch = 1, .ops = 1 << MMAP | 1 << MPROTECT | 1 << MUNMAP
	};
	struct option_row rows[] = {
		{ "size", OPTION_SIZE, &memops.size, "SIZE", "size of a region, whole pages (default 8M)", 1,
		  UINT64_C(1) << 40, false },
		{ "ops", OPTION_SET, &memops.ops, "mmap|mprotect|munmap|fault|fork|forkexit",
		  "what to measure, list with commas (default mmap,mprotect,munmap)", 0, 0, false },
		{ "mapping", OPTION_CHOICE, &memops.shared, "private|shared", "kind of mapping (default private)", 0, 0,
		  false },
		{ "iterations", OPTION_COUNT, &memops.iterations, "N", "times each thread does each operation (default 100)",
		  1, 10000000, false },
		{ "batch", OPTION_COUNT, &memops.batch, "N", "regions at once (default 1)", 1, MAX_BATCH, false },
		{ "mark-ops", OPTION_FLAG, &memops.mark_ops, NULL, "marks OP-begin and OP-end around each operation of a batch",
		  0, 0, false },
		{ "count", OPTION_FLAG, &memops.count, NULL, "instructions, not nanoseconds, on a machine that counts them",
		  0, 0, false },
		{ "touchers", OPTION_CHOICE, &memops.touchers, "none|one|all",
		  "with --count: who touches each region before an operation (default none)",
		  0, 0, false },
		{ 0 },
	};
	struct setup setup;
	struct result result;
	struct phase phase;
	unsigned int threads;

	setup_parse(&setup, SETUP_NO_REGION, argc, argv, "memops",
		    "Cost of mmap, mprotect, munmap, page faults and fork (Mitosis, table 5).", rows);
	memops.page = (uint64_t)sysconf(_SC_PAGESIZE);
	memops.size = (memops.size + memops.page - 1) / memops.page * memops.page;
	memops.setup = &setup;
	threads = (unsigned int)setup.threads;
	counted_check(&memops);
	setup_check_memory(memops.size * memops.batch * setup.threads);
	if (!memops.count)
		memops.team = team_start(&setup);
	mark("init");
	memops.samples = calloc(threads, sizeof(*memops.samples));
	if (!memops.samples)
		fail("no memory for the samples");
	for (unsigned int thread = 0; thread < threads; thread++)
		for (enum op op = 0; op < OPS; op++)
			if (wanted(&memops, op))
				samples_reserve(&memops.samples[thread][op], memops.iterations);

	phase_begin(&phase);
	if (memops.count)
		counted_run(&memops);
	else
		team_run(memops.team, work, &memops);
	phase_end(&phase);
	if (memops.team)
		team_stop(memops.team);

	result_begin(&result);
	report(&memops, threads, &result);
	phase_report(&phase, NAN, &result); /* nothing is initialised */;
	result_print(&result, "%" PRIu64 " times on %" PRIu64 " KiB of %s memory by %u thread%s in %.3f s",
		     memops.iterations, memops.size >> 10, memops.shared ? "shared" : "private", threads,
		     threads == 1 ? "" : "s", phase.seconds);
	return 0;
}
