/* Threads that are there before the measured phase begins, and the phases themselves. */
#ifndef NUMALAB_TEAM_H
#define NUMALAB_TEAM_H

#include <stdint.h>

#include "result.h"
#include "setup.h"

struct team;

/* Work of one thread of a team; the same function runs in all of them at once. */
typedef void (*team_work)(void *context, unsigned int thread, unsigned int threads);

/* Start the threads, pinned as asked for; they wait for work. */
struct team *team_start(const struct setup *setup);

/* Run `work` in all threads; returns when all of them have finished. */
void team_run(struct team *team, team_work work, void *context);

/* Inside work: wait for all threads of the team. */
void team_barrier(struct team *team);

/* Run the initialisation: each thread its share, or one thread on --init-cpu all. Returns seconds. */
double team_initialise(struct team *team, const struct setup *setup, team_work work, void *context);

/* End the threads. */
void team_stop(struct team *team);

/* Items [from, to) of `total` that are thread number `thread`'s. */
struct share {
	uint64_t from, to;
};

static inline struct share share_of(uint64_t total, unsigned int thread, unsigned int threads)
{
	return (struct share){ (uint64_t)((unsigned __int128)total * thread / threads),
			       (uint64_t)((unsigned __int128)total * (thread + 1) / threads) };
}

/* The measured phase: wall time and page faults between the marks "ready" and "done". */
struct phase {
	uint64_t began;
	double seconds;
	uint64_t minor_faults, major_faults;
};

void phase_begin(struct phase *phase); /* mark "ready", then the clock starts */
void phase_start(struct phase *phase); /* the clock starts: for those that have something to wait for after the mark */
void phase_stop(struct phase *phase);  /* the clock stops: for those that have something to read before the mark */
void phase_end(struct phase *phase);   /* the clock stops, then mark "done" */

/* Metrics `seconds`, `init_seconds`, `minor_faults`, `major_faults`, and where sampled pages of the region lie. */
void phase_report(const struct phase *phase, double init_seconds, struct result *result);
void region_report(void *start, uint64_t bytes, struct result *result);

#endif
