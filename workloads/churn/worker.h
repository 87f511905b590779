/* One of the processes of churn: what it does to its memory. */
#ifndef NUMALAB_CHURN_WORKER_H
#define NUMALAB_CHURN_WORKER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "../common/setup.h"

enum way { WAY_MERGE, WAY_UNMERGE, WAY_FORK, WAY_EXIT, WAY_MIGRATE, WAY_SWAP, WAYS };

extern const char *const way_names[WAYS];

/* The phase: even numbers are for working, odd ones for standing still, each time a higher one. */
#define CHURN_END (-1)

static inline bool churn_works(int phase)
{
	return phase >= 0 && !(phase & 1);
}

/* What parent and process tell each other, in memory that they share. */
struct slot {
	pid_t pid;
	uint64_t generation; /* processes that were started here */
	uint64_t done[WAYS];
	uint64_t checks;     /* pages */
	bool leaves;	     /* it is about to end, as it should */
	int waits;	     /* the phase it stands still in */
};

struct churn {
	struct setup setup;
	uint64_t pages;	      /* of a region */
	unsigned int processes;
	uint64_t ways;	      /* bit set of enum way */
	uint64_t rest_ms;
	struct slot *slots;
	int *phase;
};

/* Work until the phase is over, or until the process leaves. */
void worker_run(struct churn *churn, unsigned int number);

#endif
