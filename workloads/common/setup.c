#define _GNU_SOURCE
#include "setup.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "fail.h"
#include "ksm.h"

#define MAX_CPUS 4096
#define MAX_THREADS 4096
#define HUGE_PAGE (UINT64_C(2) << 20)
/* Far from where programs, libraries and stacks go, with randomised addresses too. */
#define MERGED_ADDRESS ((char *)(UINT64_C(16) << 40))

/* glibc's cpu_set_t ends at 1024 CPUs; the functions take larger sets by their size. */
struct cpus {
	cpu_set_t sets[MAX_CPUS / CPU_SETSIZE];
};

static bool try_pin(uint64_t cpu)
{
	struct cpus cpus;

	if (cpu >= MAX_CPUS)
		return false;
	CPU_ZERO_S(sizeof(cpus), cpus.sets);
	CPU_SET_S(cpu, sizeof(cpus), cpus.sets);
	return !sched_setaffinity(0, sizeof(cpus), cpus.sets);
}

/* A CPU that does not exist is a mistake on the command line, not a failure in the middle of the run. */
static void check_cpu(const char *option, uint64_t cpu)
{
	struct cpus before;

	if (sched_getaffinity(0, sizeof(before), before.sets) < 0)
		fail("cannot read the CPUs of this process: %s", strerror(errno));
	if (!try_pin(cpu))
		usage_error("--%s: CPU %" PRIu64 " does not exist or may not be used here (this machine has 0-%ld)",
			    option, cpu, sysconf(_SC_NPROCESSORS_CONF) - 1);
	sched_setaffinity(0, sizeof(before), before.sets);
}

static void add_cpu(uint64_t cpu, void *context)
{
	struct setup *setup = context;

	check_cpu("cpus", cpu);
	setup->cpus = realloc(setup->cpus, (setup->cpu_count + 1) * sizeof(*setup->cpus));
	if (!setup->cpus)
		fail("no memory for the list of CPUs");
	setup->cpus[setup->cpu_count++] = (int)cpu;
}

static void finish(struct setup *setup, bool init_given)
{
	setup->memory = policy_parse("memory", setup->memory_text);
	if (setup->cpus_text)
		list_parse("--cpus", setup->cpus_text, add_cpu, setup);
	if (setup->init_cpu_given) {
		if (init_given && setup->init != INIT_SINGLE)
			usage_error("--init-cpu names the CPU of --init single, not of --init parallel");
		setup->init = INIT_SINGLE;
		check_cpu("init-cpu", setup->init_cpu);
	}
	if (setup->tables_text)
		setup->tables = policy_parse("tables", setup->tables_text);
	if (policy_is_set(&setup->tables)) {
		policy_of_process(&setup->tables);
		/* Page tables go by the policy of the process; keep the data out of it. */
		if (!policy_is_set(&setup->memory))
			setup->memory.mode = MPOL_LOCAL;
	}
	if (setup->mergeable == MERGE_PROCESS)
		ksm_merge_process();
	if (setup->huge == HUGE_NEVER && prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0))
		fail("cannot turn transparent huge pages off: %s", strerror(errno));
}

void setup_parse(struct setup *setup, enum setup_scope scope, int argc, char **argv, const char *program,
		 const char *summary, struct option_row *own)
{
	struct option_row rows[] = {
		{ "threads", OPTION_COUNT, &setup->threads, "N", "number of threads (default 1)", 1, MAX_THREADS,
		  false },
		{ "cpus", OPTION_TEXT, &setup->cpus_text, "LIST",
		  "pin the threads to these CPUs, round robin (default: not pinned)", 0, 0, false },
		{ "memory", OPTION_TEXT, &setup->memory_text, "POLICY",
		  "data: first-touch (default), local, bind:NODES, interleave:NODES", 0, 0, false },
		{ "huge", OPTION_CHOICE, &setup->huge, "default|always|never", "transparent huge pages", 0, 0, false },
		{ "tables", OPTION_TEXT, &setup->tables_text, "POLICY",
		  "page tables: as for --memory (default: as the process)", 0, 0, false },
		{ "seed", OPTION_COUNT, &setup->seed, "N", "seed of the random numbers (default 1)", 0, 0, false },
		/* Those below are for a region that is initialised. */
		{ "init", OPTION_CHOICE, &setup->init, "parallel|single",
		  "who touches first: each thread its share (default), or one thread all", 0, 0, false },
		{ "init-cpu", OPTION_COUNT, &setup->init_cpu, "CPU", "CPU of the one thread; means --init single", 0,
		  0, false },
		{ "mergeable", OPTION_CHOICE, &setup->mergeable, "no|region|process",
		  "what KSM may merge: nothing, the region, or all anonymous memory", 0, 0, false },
		{ 0 },
	};
	enum { INIT_ROW = 6, INIT_CPU_ROW = 7 };

	*setup = (struct setup){ .threads = 1, .memory_text = "first-touch", .seed = 1 };
	if (scope == SETUP_NO_REGION)
		rows[INIT_ROW].name = NULL;
	options_parse(argc, argv, program, summary, own, rows);
	setup->init_cpu_given = rows[INIT_CPU_ROW].given;
	finish(setup, rows[INIT_ROW].given);
}

int setup_cpu(const struct setup *setup, unsigned int thread)
{
	return setup->cpu_count ? setup->cpus[thread % setup->cpu_count] : -1;
}

void setup_pin(int cpu)
{
	if (cpu >= 0 && !try_pin((uint64_t)cpu))
		fail("cannot pin a thread to CPU %d: %s", cpu, strerror(errno));
}

/* Bytes that can be had without killing somebody, or 0 when /proc does not say. */
static uint64_t available_memory(void)
{
	FILE *info = fopen("/proc/meminfo", "re");
	uint64_t kib, total = 0;
	char line[128];

	if (!info)
		return 0;
	while (fgets(line, sizeof(line), info))
		if (sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1 || sscanf(line, "SwapFree: %" SCNu64, &kib) == 1)
			total += kib << 10;
	fclose(info);
	return total;
}

void setup_check_memory(uint64_t bytes)
{
	uint64_t available = available_memory();

	if (available && bytes > available)
		fail("%" PRIu64 " MiB of memory are needed, %" PRIu64 " MiB are available on this machine", bytes >> 20,
		     available >> 20);
}

bool setup_needs_advice(const struct setup *setup)
{
	return policy_is_set(&setup->memory) || setup->huge == HUGE_ALWAYS;
}

void setup_advise(const struct setup *setup, void *start, uint64_t bytes)
{
	policy_of_region(&setup->memory, start, bytes);
	if (setup->huge == HUGE_ALWAYS && madvise(start, bytes, MADV_HUGEPAGE))
		fail("this kernel has no transparent huge pages (madvise: %s)", strerror(errno));
}

void *setup_region(const struct setup *setup, uint64_t bytes)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), slack;
	bool merged = setup->mergeable != MERGE_NO;
	char *start;

	if (bytes > UINT64_C(1) << 56)
		fail("a region of %" PRIu64 " bytes does not fit an address space", bytes);
	bytes = (bytes + page - 1) / page * page;
	setup_check_memory(bytes);
	start = mmap(merged ? MERGED_ADDRESS : NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (merged ? MAP_FIXED_NOREPLACE : 0), -1, 0);
	if (start == MAP_FAILED)
		fail("cannot map %" PRIu64 " MiB: %s", bytes >> 20, strerror(errno));
	/* The number of page tables is the same in every run only if the region starts where a table does. */
	slack = -(uint64_t)start % HUGE_PAGE;
	if (slack)
		munmap(start, slack);
	start += slack;
	munmap(start + bytes, HUGE_PAGE - slack);
	setup_advise(setup, start, bytes);
	if (setup->mergeable == MERGE_REGION)
		ksm_merge_region(start, bytes);
	return start;
}
