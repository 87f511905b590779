#define _GNU_SOURCE
#include "watch.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "fail.h"
#include "ksm.h"
#include "policy.h"

#define SAMPLED_PAGES 1024

struct watch_counter watch_counters[WATCH_THREADS];

static struct {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t stopped;
	bool stop, started;
	uint64_t threads;
	double interval;
	uint64_t began, passes;
	void *start;
	uint64_t bytes;
} watch = { .lock = PTHREAD_MUTEX_INITIALIZER };

uint64_t watch_work(uint64_t threads)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < threads; i++)
		sum += __atomic_load_n(&watch_counters[i].done, __ATOMIC_RELAXED);
	return sum;
}

static void print_point(void)
{
	static const char *const counters[] = { "pages_shared", "pages_sharing", "pages_scanned", "numa_copies" };
	static uint64_t counts[POLICY_MAX_NODES];
	uint64_t value;

	printf("numalab-point: {\"seconds\": %.6f, \"work\": %" PRIu64, clock_seconds(watch.began, clock_ns()),
	       watch_work(watch.threads));
	if (ksm_counter("full_scans", &value))
		printf(", \"passes\": %" PRIu64, value - watch.passes);
	for (size_t i = 0; i < sizeof(counters) / sizeof(counters[0]); i++)
		if (ksm_counter(counters[i], &value))
			printf(", \"%s\": %" PRIu64, counters[i], value);
	if (ksm_own_counter("ksm_merging_pages", &value))
		printf(", \"merged_pages\": %" PRIu64, value);
	if (policy_sample_pages(watch.start, watch.bytes, SAMPLED_PAGES, counts))
		for (int node = 0; node < POLICY_MAX_NODES; node++)
			if (counts[node])
				printf(", \"node%d\": %" PRIu64, node, counts[node]);
	printf("}\n");
}

static void *watch_main(void *unused)
{
	uint64_t next = watch.began;

	(void)unused;
	pthread_mutex_lock(&watch.lock);
	while (!watch.stop) {
		struct timespec until;

		next += (uint64_t)(watch.interval * 1e9);
		until = (struct timespec){ (time_t)(next / 1000000000u), (long)(next % 1000000000u) };
		if (pthread_cond_timedwait(&watch.stopped, &watch.lock, &until) == ETIMEDOUT)
			print_point();
	}
	pthread_mutex_unlock(&watch.lock);
	return NULL;
}

void watch_start(uint64_t threads, double interval, void *start, uint64_t bytes)
{
	pthread_condattr_t attributes;
	int error;

	if (interval <= 0)
		return;
	watch.threads = threads;
	watch.interval = interval;
	watch.start = start;
	watch.bytes = bytes;
	watch.began = clock_ns();
	watch.passes = ksm_passes();
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&watch.stopped, &attributes);
	error = pthread_create(&watch.thread, NULL, watch_main, NULL);
	if (error)
		fail("cannot start a thread: %s", strerror(error));
	watch.started = true;
}

void watch_stop(void)
{
	if (!watch.started)
		return;
	pthread_mutex_lock(&watch.lock);
	watch.stop = true;
	pthread_cond_signal(&watch.stopped);
	pthread_mutex_unlock(&watch.lock);
	pthread_join(watch.thread, NULL);
	watch.started = false;
	print_point();
}
