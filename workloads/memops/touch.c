#define _GNU_SOURCE
#include "touch.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../common/fail.h"
#include "../common/setup.h"

#define MAX_NODES 1024
#define STAMP UINT64_C(0x9e3779b97f4a7c15)

struct helper {
	struct helpers *team;
	pthread_t thread;
	int cpu;
	sem_t go, done;
};

struct helpers {
	const struct region *region;
	unsigned int count;
	bool leave;
	struct helper each[MAX_NODES];
};

void region_stamp(const struct region *region)
{
	uint64_t word = STAMP;

	for (uint64_t offset = 0; offset < region->size; offset += region->page, word += STAMP)
		*(volatile uint64_t *)(region->start + offset) = word;
}

static void look(const struct region *region, uint64_t step)
{
	uint64_t word = step;

	for (uint64_t offset = 0; offset < region->size; offset += region->page, word += step) {
		uint64_t found = *(volatile uint64_t *)(region->start + offset);

		if (found != word)
			fail("page %" PRIu64 " of the region holds 0x%" PRIx64 ", not 0x%" PRIx64,
			     offset / region->page, found, word);
	}
}

void region_look(const struct region *region)
{
	look(region, STAMP);
}

void region_look_blank(const struct region *region)
{
	look(region, 0);
}

static void await(sem_t *semaphore)
{
	while (sem_wait(semaphore) && errno == EINTR)
		;
}

static void *helper_main(void *argument)
{
	struct helper *helper = argument;

	setup_pin(helper->cpu);
	for (;;) {
		await(&helper->go);
		if (helper->team->leave)
			return NULL;
		region_look(helper->team->region);
		sem_post(&helper->done);
	}
}

/* The first CPU in /sys/devices/system/node/nodeN/cpulist, or -1. */
static int first_cpu(unsigned int node)
{
	char path[64];
	FILE *file;
	int cpu = -1;

	snprintf(path, sizeof(path), "/sys/devices/system/node/node%u/cpulist", node);
	file = fopen(path, "re");
	if (!file)
		return -1;
	if (fscanf(file, "%d", &cpu) != 1)
		cpu = -1;
	fclose(file);
	return cpu;
}

struct helpers *helpers_start(const struct region *region)
{
	struct helpers *helpers = calloc(1, sizeof(*helpers));
	unsigned int here;

	if (!helpers || getcpu(NULL, &here))
		fail("cannot set up the threads of the other nodes: %s", strerror(errno));
	helpers->region = region;
	for (unsigned int node = 0; node < MAX_NODES; node++) {
		struct helper *helper = &helpers->each[helpers->count];
		int cpu = node == here ? -1 : first_cpu(node);

		if (cpu < 0)
			continue;
		helper->team = helpers;
		helper->cpu = cpu;
		sem_init(&helper->go, 0, 0);
		sem_init(&helper->done, 0, 0);
		errno = pthread_create(&helper->thread, NULL, helper_main, helper);
		if (errno)
			fail("cannot start a thread: %s", strerror(errno));
		helpers->count++;
	}
	return helpers;
}

void helpers_look(struct helpers *helpers)
{
	for (unsigned int i = 0; i < helpers->count; i++) {
		sem_post(&helpers->each[i].go);
		await(&helpers->each[i].done);
	}
}

void helpers_stop(struct helpers *helpers)
{
	helpers->leave = true;
	for (unsigned int i = 0; i < helpers->count; i++) {
		sem_post(&helpers->each[i].go);
		pthread_join(helpers->each[i].thread, NULL);
	}
	free(helpers);
}
