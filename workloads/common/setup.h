/* What all workloads have in common: threads and their CPUs, placement of memory, huge pages, seed. */
#ifndef NUMALAB_SETUP_H
#define NUMALAB_SETUP_H

#include <stdbool.h>
#include <stdint.h>

#include "options.h"
#include "policy.h"

enum init_mode { INIT_PARALLEL, INIT_SINGLE };
enum huge_mode { HUGE_DEFAULT, HUGE_ALWAYS, HUGE_NEVER };
enum merge_mode { MERGE_NO, MERGE_REGION, MERGE_PROCESS };

struct setup {
	/* as given */
	uint64_t threads;
	const char *cpus_text;
	const char *memory_text;
	const char *tables_text;
	uint64_t init_cpu;
	int init; /* enum init_mode */
	int huge; /* enum huge_mode */
	uint64_t seed;
	int mergeable; /* enum merge_mode */
	/* worked out */
	bool init_cpu_given;
	unsigned int cpu_count; /* 0: threads are not pinned */
	int *cpus;
	struct policy memory;
	struct policy tables;
};

/* Whether the workload initialises a region before the measured phase. */
enum setup_scope {
	SETUP_REGION,	 /* it does: all options */
	SETUP_NO_REGION, /* it maps and unmaps all the time: no --init, no --init-cpu, no --mergeable */
};

/* Parse the command line: the workload's own rows and the common ones; apply what concerns the whole process. */
void setup_parse(struct setup *setup, enum setup_scope scope, int argc, char **argv, const char *program,
		 const char *summary, struct option_row *own);

/* The CPU of thread number `thread`, or -1 when threads are not pinned. */
int setup_cpu(const struct setup *setup, unsigned int thread);

/* Pin the calling thread; -1 does nothing. */
void setup_pin(int cpu);

/* Fail with both numbers when the machine has less than `bytes` of memory available. */
void setup_check_memory(uint64_t bytes);

/* Does a new mapping need a policy or advice before its first page? */
bool setup_needs_advice(const struct setup *setup);

/* Give [start, start + bytes), whole pages, the memory policy and the huge-page advice asked for. */
void setup_advise(const struct setup *setup, void *start, uint64_t bytes);

/*
 * Map `bytes` (rounded up to pages) of zeroed memory, aligned to 2 MiB, with the memory policy and huge-page advice
 * asked for. Nothing is touched: page tables and data appear where and when the workload initialises it. Fails when
 * the machine has less memory available. One that KSM may merge is at the same address in every process: pages that
 * hold pointers into it are to be equal.
 */
void *setup_region(const struct setup *setup, uint64_t bytes);

#endif
