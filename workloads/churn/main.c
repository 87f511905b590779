/*
 * Churn: processes with many equal pages that do to them, all at once and at random, whatever changes memory that KSM
 * merges: making pages equal, taking them apart, fork and copy on write, exit and kill at any moment, migration, and
 * reclaim to swap. What each page is to hold is known, and checked all the time.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../common/clock.h"
#include "../common/fail.h"
#include "../common/ksm.h"
#include "../common/marks.h"
#include "../common/result.h"
#include "../common/setup.h"
#include "../common/stop.h"
#include "../common/team.h"
#include "worker.h"

/* Microseconds between two looks of the parent at its processes. */
#define LOOK_US 20000

static void start(struct churn *churn, unsigned int number)
{
	struct slot *slot = &churn->slots[number];
	pid_t pid;

	slot->leaves = false;
	slot->waits = 0;
	slot->generation++;
	pid = fork();
	if (pid < 0)
		fail("cannot start process %u: %s", number, strerror(errno));
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		worker_run(churn, number);
		_exit(0);
	}
	slot->pid = pid;
}

/* A process that has ended is started anew, if it was to end so; all end with this program when one has failed. */
static void restart(struct churn *churn)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		unsigned int number = 0;

		while (number < churn->processes && churn->slots[number].pid != pid)
			number++;
		if (number == churn->processes)
			fail("process %d ended, and is none of ours", (int)pid);
		if (WIFEXITED(status) && WEXITSTATUS(status))
			fail("process %u has failed (above)", number);
		if (!churn->slots[number].leaves)
			fail("process %u was ended by %s %d", number, WIFSIGNALED(status) ? "signal" : "exit",
			     WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
		start(churn, number);
	}
	if (pid < 0 && errno != EINTR)
		fail("no process is left: %s", strerror(errno));
}

static bool all_wait(struct churn *churn)
{
	for (unsigned int number = 0; number < churn->processes; number++)
		if (__atomic_load_n(&churn->slots[number].waits, __ATOMIC_ACQUIRE) != *churn->phase)
			return false;
	return true;
}

/* Each process checks all it has, and stands still: no child is left then. */
static void quieten(struct churn *churn)
{
	__atomic_store_n(churn->phase, *churn->phase + 1, __ATOMIC_RELEASE);
	while (!all_wait(churn)) {
		usleep(LOOK_US);
		restart(churn);
	}
}

static void *shared(uint64_t bytes)
{
	void *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (start == MAP_FAILED)
		fail("cannot map %" PRIu64 " bytes: %s", bytes, strerror(errno));
	return start;
}

static uint64_t swapped_out(void)
{
	FILE *file = fopen("/proc/vmstat", "re");
	uint64_t value = 0, found = 0;
	char line[128];

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "pswpout %" SCNu64, &value) == 1)
			found = value;
	if (file)
		fclose(file);
	return found;
}

static void report(const struct churn *churn, struct result *result)
{
	char metric[32];

	for (int way = 0; way < WAYS; way++) {
		uint64_t done = 0;

		for (unsigned int number = 0; number < churn->processes; number++)
			done += churn->slots[number].done[way];
		snprintf(metric, sizeof(metric), "%s_count", way_names[way]);
		result_count(result, metric, done);
	}
}

static uint64_t total_checks(const struct churn *churn)
{
	uint64_t checks = 0;

	for (unsigned int number = 0; number < churn->processes; number++)
		checks += churn->slots[number].checks;
	return checks;
}

int main(int argc, char **argv)
{
	struct churn churn = { .ways = (1u << WAYS) - 1 };
	uint64_t size = UINT64_C(4) << 20, processes = 4, swapped;
	double seconds = 5, quiet = 0;
	uint64_t last_quiet;
	struct option_row rows[] = {
		{ "size", OPTION_SIZE, &size, "SIZE", "size of the region of each process (default 4M)", 65536, 0,
		  false },
		{ "processes", OPTION_COUNT, &processes, "N", "processes, each with a region (default 4)", 1, 256,
		  false },
		{ "ways", OPTION_SET, &churn.ways, "merge|unmerge|fork|exit|migrate|swap",
		  "what they do to their memory (default: everything)", 0, 0, false },
		{ "seconds", OPTION_SECONDS, &seconds, "S", "end after so many seconds (default 5)", 0, 0, false },
		{ "quiet", OPTION_SECONDS, &quiet, "S",
		  "stand still at the mark \"quiet\" each so many seconds (default: never)", 0, 0, false },
		{ "rest", OPTION_COUNT, &churn.rest_ms, "MS", "sleep so many milliseconds after each step (default 0)",
		  0, 3600000, false },
		{ 0 },
	};
	struct result result;
	struct phase phase;

	stop_by_signals();
	setup_parse(&churn.setup, SETUP_REGION, argc, argv, "churn",
		    "Processes that change equal memory in six ways at once, and check it all the time.", rows);
	if (churn.setup.threads != 1)
		usage_error("--threads: each of the processes has one thread; --processes says how many there are");
	churn.pages = size / (uint64_t)sysconf(_SC_PAGESIZE);
	churn.processes = (unsigned int)processes;
	churn.slots = shared(processes * sizeof(*churn.slots));
	churn.phase = shared(sizeof(*churn.phase));
	setup_check_memory(size * processes);
	mark("init");
	mark("ready");
	swapped = swapped_out();
	phase_start(&phase);
	last_quiet = phase.began;
	for (unsigned int number = 0; number < churn.processes; number++)
		start(&churn, number);
	while (!stop_signalled() && clock_seconds(phase.began, clock_ns()) < seconds) {
		usleep(LOOK_US);
		restart(&churn);
		if (quiet && clock_seconds(last_quiet, clock_ns()) >= quiet) {
			quieten(&churn);
			mark("quiet");
			__atomic_store_n(churn.phase, *churn.phase + 1, __ATOMIC_RELEASE);
			last_quiet = clock_ns();
		}
	}
	/* What they have is looked at from outside as well, and checked again. */
	quieten(&churn);
	phase_stop(&phase);
	result_begin(&result);
	report(&churn, &result);
	result_count(&result, "swapped_pages", swapped_out() - swapped);
	ksm_report(&result);
	mark("done");
	__atomic_store_n(churn.phase, CHURN_END, __ATOMIC_RELEASE);
	for (unsigned int number = 0; number < churn.processes; number++) {
		int status;

		if (waitpid(churn.slots[number].pid, &status, 0) < 0 || status)
			fail("process %u has failed in the end: status %#x", number, (unsigned int)status);
	}
	phase_report(&phase, NAN, &result);
	result_count(&result, "checked_pages", total_checks(&churn));
	result_print(&result, "%u processes of %" PRIu64 " MiB in %.3f s, %" PRIu64 " pages checked, all right%s",
		     churn.processes, size >> 20, phase.seconds, total_checks(&churn),
		     stop_signalled() ? " (ended by a signal)" : "");
	return 0;
}
