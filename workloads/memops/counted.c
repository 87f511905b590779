/*
 * memops --count: instructions of each operation, on a machine that counts them.
 *
 * One kind of round maps a region populated, protects and unmaps it; another maps it empty, touches every page, and
 * forks. One thread does all of it on one CPU; the other CPUs are idle while an operation is counted, unless the
 * operation itself has work for them (flushing TLBs). The region always lies at the same address, with page tables
 * around it that stay, so that every round, boot and kernel does the same: in a process that has run for a while the
 * tables above a mapping are there already.
 *
 * What an operation did is checked: in the first rounds, which are not counted, by looking at everything; later by
 * those who touch the region anyway, because looking is touching.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../common/fail.h"
#include "../common/instructions.h"
#include "memops.h"
#include "touch.h"

/* Far from where the kernel puts mappings, and aligned to what one PMD table spans: 1 GiB. */
#define PLACE ((char *)0x100000000000)
/* Long enough for the CPUs that have touched the region to go to sleep, tick and all. */
#define SETTLE_US 5000
#define SPACERS 3
#define LARGE (UINT64_C(64) << 20)
/* A process comes and goes with some percent more or fewer instructions each time: so many make a steady mean. */
#define FORKS 2000

struct counted {
	struct memops *memops;
	struct region region;
	struct helpers *helpers; /* NULL unless --touchers all */
	bool warm;		 /* this round counts */
	uint64_t forks;		 /* so many in a round */
	uint64_t fixed;		 /* instructions of measuring nothing */
	int zero;		 /* /dev/zero */
};

/* Those who are to touch the region read it; its pages must bear their stamps. */
static void touch(struct counted *counted)
{
	if (counted->memops->touchers == TOUCH_NONE && counted->warm)
		return;
	region_look(&counted->region);
	if (counted->helpers)
		helpers_look(counted->helpers);
}

/* Call `function` and keep what it took. */
static uint64_t count(struct counted *counted, enum op op, void (*function)(struct counted *))
{
	uint64_t began, took;

	if (counted->helpers)
		usleep(SETTLE_US);
	began = instructions();
	function(counted);
	took = instructions() - began;
	if (counted->warm && op < OPS && wanted(counted->memops, op))
		samples_add(&counted->memops->samples[0][op], took - counted->fixed);
	return took;
}

static void do_nothing(struct counted *counted)
{
	(void)counted;
}

static void do_mmap(struct counted *counted)
{
	counted->region.start = map_region(counted->memops, PLACE, true);
}

static void do_mprotect(struct counted *counted)
{
	if (mprotect(counted->region.start, counted->memops->size, PROT_READ))
		fail("mprotect of %" PRIu64 " bytes: %s", counted->memops->size, strerror(errno));
}

static void do_munmap(struct counted *counted)
{
	if (munmap(counted->region.start, counted->memops->size))
		fail("munmap of %" PRIu64 " bytes: %s", counted->memops->size, strerror(errno));
}

static void do_fault(struct counted *counted)
{
	region_stamp(&counted->region);
}

static void do_forkexit(struct counted *counted)
{
	pid_t child = fork();

	if (!child) {
		if (!counted->warm)
			region_look(&counted->region);
		_exit(0);
	}
	if (child < 0)
		fail("fork: %s", strerror(errno));
	wait_for_child();
}

/* Can the kernel write to a page on our behalf? As good as trying it, and no signal to catch. */
static bool writable(const struct counted *counted, uint64_t offset)
{
	if (read(counted->zero, counted->region.start + offset, 1) == 1)
		return true;
	if (errno != EFAULT)
		fail("reading /dev/zero: %s", strerror(errno));
	return false;
}

static void check_populated(const struct counted *counted)
{
	const struct memops *memops = counted->memops;
	uint64_t pages = memops->size / memops->page;
	unsigned char *resident = malloc(pages);

	if (!resident || mincore(counted->region.start, memops->size, resident))
		fail("mincore: %s", strerror(errno));
	for (uint64_t page = 0; page < pages; page++)
		if (!(resident[page] & 1))
			fail("page %" PRIu64 " is not there after mmap with MAP_POPULATE", page);
	free(resident);
	region_look_blank(&counted->region);
}

static void check_gone(const struct counted *counted)
{
	unsigned char resident;

	if (!mincore(counted->region.start, counted->memops->page, &resident) || errno != ENOMEM)
		fail("there is still something mapped after munmap");
}

/* mmap, mprotect, munmap. */
static void mapping_round(struct counted *counted)
{
	const struct memops *memops = counted->memops;

	count(counted, MMAP, do_mmap);
	if (!counted->warm)
		check_populated(counted);
	if (memops->touchers != TOUCH_NONE || !counted->warm)
		region_stamp(&counted->region);
	if (wanted(memops, MPROTECT)) {
		touch(counted);
		count(counted, MPROTECT, do_mprotect);
		if (!counted->warm && (writable(counted, 0) || writable(counted, memops->size - memops->page)))
			fail("mprotect to read-only left the region writable");
	}
	touch(counted);
	count(counted, MUNMAP, do_munmap);
	if (!counted->warm)
		check_gone(counted);
}

/* Page faults, and fork with the pages they brought. */
static void fault_round(struct counted *counted)
{
	counted->region.start = map_region(counted->memops, PLACE, false);
	count(counted, FAULT, do_fault);
	touch(counted);
	for (uint64_t i = 0; i < counted->forks; i++)
		count(counted, FORKEXIT, do_forkexit);
	if (counted->forks)
		touch(counted);
	do_munmap(counted);
}

static void place(char *where, uint64_t bytes, int protection, int flags)
{
	flags |= MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
	if (mmap(where, bytes, protection, flags, -1, 0) != where || madvise(where, bytes, MADV_DONTFORK))
		fail("cannot map a page at %p: %s", (void *)where, strerror(errno));
}

/*
 * One page a page beyond the region, too far to become one mapping with it: the tables above stay for all rounds.
 *
 * And a few empty mappings. The kernel keeps mappings in a tree of nodes with sixteen slots. Where a node happens to be
 * full, mapping one more splits it and unmapping that joins it again, each nearly as dear as a page fault; with as few
 * mappings as this program has, one to five more keep clear of that.
 */
static void place_neighbours(const struct memops *memops)
{
	char *where = PLACE + memops->size + memops->page;

	place(where, memops->page, PROT_READ | PROT_WRITE, MAP_POPULATE);
	for (int i = 1; i <= SPACERS; i++)
		place(where + 2 * (uint64_t)i * memops->page, memops->page, PROT_NONE, 0);
}

/*
 * The CPU this program began on is idle now and may still have its page tables loaded, so that each flush of TLBs
 * considers it. A flush because tables are freed reaches it, and it lets go.
 */
static void leave_other_cpus(uint64_t bytes)
{
	place(PLACE, bytes, PROT_READ | PROT_WRITE, MAP_POPULATE);
	if (munmap(PLACE, bytes))
		fail("munmap: %s", strerror(errno));
}

void counted_check(const struct memops *memops)
{
	if (!memops->count && memops->touchers != TOUCH_NONE)
		usage_error("--touchers goes with --count");
	if (!memops->count)
		return;
	if (memops->setup->threads != 1 || memops->batch != 1)
		usage_error("--count works on one region in one thread: leave out --threads and --batch");
	if (memops->mark_ops)
		usage_error("--count and --mark-ops exclude each other: marks are work of the kernel, too");
	if (wanted(memops, FORK))
		usage_error("--count has forkexit, not fork: when the child runs is the scheduler's choice");
}

/*
 * Page tables and much else are freed after a grace period of RCU, in whatever runs then. What a large region leaves
 * behind is thousands of such objects: let them go before the next round. (That they do not go while an operation is
 * counted is for the laboratory to arrange: grace periods longer than that, mitosis.cost.)
 */
static void finish_deferred_work(void)
{
	if (syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0))
		fail("membarrier: %s", strerror(errno));
}

/* As many as asked for, and before them some that do not count: caches of pages and objects fill. */
static void rounds(struct counted *counted, void (*round)(struct counted *))
{
	uint64_t cold = counted->memops->iterations / 10 + 1;

	for (uint64_t i = 0; i < cold + counted->memops->iterations; i++) {
		counted->warm = i >= cold;
		if (counted->memops->size >= LARGE)
			finish_deferred_work();
		round(counted);
	}
}

/*
 * Forks in each round. Fork copies no page table of a shared region: one is like the next. Of a private one only the
 * first finds pages writable; with more than one page, copying them outweighs the noise.
 */
static uint64_t forks(const struct memops *memops)
{
	if (!wanted(memops, FORKEXIT))
		return 0;
	return memops->shared && memops->iterations < FORKS ? (FORKS + memops->iterations - 1) / memops->iterations : 1;
}

void counted_run(struct memops *memops)
{
	struct counted counted = {
		.memops = memops,
		.forks = forks(memops),
		.region = { .size = memops->size, .page = memops->page },
		.zero = open("/dev/zero", O_RDONLY | O_CLOEXEC),
	};
	int cpu = setup_cpu(memops->setup, 0);

	if (counted.zero < 0)
		fail("/dev/zero: %s", strerror(errno));
	setup_pin(cpu < 0 ? sched_getcpu() : cpu);
	instructions_check();
	if (memops->touchers == TOUCH_ALL)
		counted.helpers = helpers_start(&counted.region);
	leave_other_cpus(memops->page);
	place_neighbours(memops);
	counted.fixed = UINT64_MAX;
	for (int try = 0; try < 16; try++) {
		uint64_t took = count(&counted, OPS, do_nothing);

		if (took < counted.fixed)
			counted.fixed = took;
	}
	if (memops->ops & (1 << MMAP | 1 << MPROTECT | 1 << MUNMAP))
		rounds(&counted, mapping_round);
	if (memops->ops & (1 << FAULT | 1 << FORKEXIT))
		rounds(&counted, fault_round);
	if (counted.helpers)
		helpers_stop(counted.helpers);
	close(counted.zero);
}
