#define _GNU_SOURCE
#include "team.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "clock.h"
#include "fail.h"
#include "marks.h"

#define STACK_BYTES (256 << 10)
#define SAMPLED_PAGES 1024

struct member {
	struct team *team;
	pthread_t thread;
	unsigned int number;
	int cpu;
};

struct team {
	unsigned int threads;
	struct member *members;
	pthread_barrier_t go, finished, inside;
	team_work work; /* NULL: go home */
	void *context;
};

static void *member_main(void *argument)
{
	struct member *member = argument;
	struct team *team = member->team;

	setup_pin(member->cpu);
	for (;;) {
		pthread_barrier_wait(&team->go);
		if (!team->work)
			return NULL;
		team->work(team->context, member->number, team->threads);
		pthread_barrier_wait(&team->finished);
	}
}

static void start_thread(pthread_t *thread, void *(*function)(void *), void *argument)
{
	pthread_attr_t attributes;
	int error;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	error = pthread_create(thread, &attributes, function, argument);
	if (error)
		fail("cannot start a thread: %s", strerror(error));
	pthread_attr_destroy(&attributes);
}

struct team *team_start(const struct setup *setup)
{
	struct team *team = calloc(1, sizeof(*team));
	unsigned int threads = (unsigned int)setup->threads;

	if (!team || !(team->members = calloc(threads, sizeof(*team->members))))
		fail("no memory for %u threads", threads);
	team->threads = threads;
	pthread_barrier_init(&team->go, NULL, threads + 1);
	pthread_barrier_init(&team->finished, NULL, threads + 1);
	pthread_barrier_init(&team->inside, NULL, threads);
	for (unsigned int i = 0; i < threads; i++) {
		team->members[i] = (struct member){ .team = team, .number = i, .cpu = setup_cpu(setup, i) };
		start_thread(&team->members[i].thread, member_main, &team->members[i]);
	}
	return team;
}

void team_run(struct team *team, team_work work, void *context)
{
	team->work = work;
	team->context = context;
	pthread_barrier_wait(&team->go);
	pthread_barrier_wait(&team->finished);
}

void team_barrier(struct team *team)
{
	pthread_barrier_wait(&team->inside);
}

void team_stop(struct team *team)
{
	team->work = NULL;
	pthread_barrier_wait(&team->go);
	for (unsigned int i = 0; i < team->threads; i++)
		pthread_join(team->members[i].thread, NULL);
	free(team->members);
	free(team);
}

struct single {
	team_work work;
	void *context;
	int cpu;
};

static void *single_main(void *argument)
{
	struct single *single = argument;

	setup_pin(single->cpu);
	single->work(single->context, 0, 1);
	return NULL;
}

double team_initialise(struct team *team, const struct setup *setup, team_work work, void *context)
{
	uint64_t began = clock_ns();

	if (setup->init == INIT_PARALLEL) {
		team_run(team, work, context);
	} else {
		/* A thread of its own, so that no thread of the measured phase has been pinned elsewhere. */
		struct single single = { work, context, setup_cpu(setup, 0) };
		pthread_t thread;

		if (setup->init_cpu_given)
			single.cpu = (int)setup->init_cpu;
		start_thread(&thread, single_main, &single);
		pthread_join(thread, NULL);
	}
	return clock_seconds(began, clock_ns());
}

static void count_faults(struct phase *phase, int sign)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	phase->minor_faults += (uint64_t)(sign * usage.ru_minflt);
	phase->major_faults += (uint64_t)(sign * usage.ru_majflt);
}

void phase_begin(struct phase *phase)
{
	mark("ready");
	phase_start(phase);
}

void phase_start(struct phase *phase)
{
	*phase = (struct phase){ 0 };
	count_faults(phase, -1);
	phase->began = clock_ns();
}

void phase_stop(struct phase *phase)
{
	phase->seconds = clock_seconds(phase->began, clock_ns());
	count_faults(phase, 1);
}

void phase_end(struct phase *phase)
{
	phase_stop(phase);
	mark("done");
}

void phase_report(const struct phase *phase, double init_seconds, struct result *result)
{
	result_real(result, "seconds", phase->seconds);
	result_real(result, "init_seconds", init_seconds);
	result_count(result, "minor_faults", phase->minor_faults);
	result_count(result, "major_faults", phase->major_faults);
}

void region_report(void *start, uint64_t bytes, struct result *result)
{
	static uint64_t counts[POLICY_MAX_NODES];
	uint64_t nodes[POLICY_WORDS];
	char metric[48];

	if (!policy_sample_pages(start, bytes, SAMPLED_PAGES, counts))
		return;
	policy_allowed_nodes(nodes);
	for (int node = 0; node < POLICY_MAX_NODES; node++) {
		if (!(nodes[node / 64] >> (node % 64) & 1))
			continue;
		snprintf(metric, sizeof(metric), "sampled_pages_node%d", node);
		result_count(result, metric, counts[node]);
	}
}
