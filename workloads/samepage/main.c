/*
 * Same pages: memory whose content is known and equal in every process that runs this, read at random while KSM
 * merges it; every read is checked, and where the pages lie is counted.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "../common/clock.h"
#include "../common/fail.h"
#include "../common/ksm.h"
#include "../common/marks.h"
#include "../common/result.h"
#include "../common/setup.h"
#include "../common/stop.h"
#include "../common/team.h"
#include "../common/watch.h"
#include "move.h"
#include "pages.h"

/* Reads between two looks at the clock, and nanoseconds between two looks at KSM. */
#define READS 1024
#define LOOK_NS 20000000

struct samepage {
	struct pages pages;
	uint64_t hot_percent;
	uint64_t rest_ms;
	uint64_t seed;
	uint64_t last_pass; /* 0: none was asked for */
	double seconds;
	bool forever;
	uint64_t began;
	bool stop; /* written by thread 0 */
	struct move move;
	uint64_t errors;
};

static void fill(void *context, unsigned int thread, unsigned int threads)
{
	struct samepage *samepage = context;
	struct share share = share_of(samepage->pages.count, thread, threads);

	pages_fill(&samepage->pages, share.from, share.to);
}

/* Passes end the phase where there are passes: else a machine without KSM would never be done. */
static bool is_over(const struct samepage *samepage)
{
	if (stop_signalled())
		return true;
	if (samepage->forever)
		return false;
	if (samepage->last_pass && ksm_runs())
		return ksm_passes() >= samepage->last_pass;
	return clock_seconds(samepage->began, clock_ns()) >= samepage->seconds;
}

static void look(struct samepage *samepage, uint64_t *looked)
{
	uint64_t now = clock_ns();

	if (now - *looked < LOOK_NS)
		return;
	*looked = now;
	move_look(&samepage->move, &samepage->pages);
	if (is_over(samepage))
		__atomic_store_n(&samepage->stop, true, __ATOMIC_RELAXED);
}

/* Of each hundred pages the first `hot_percent` are read. */
static uint64_t hot_page(const struct samepage *samepage, uint64_t random)
{
	uint64_t hot = samepage->hot_percent, pages = samepage->pages.count;
	uint64_t of_rest = pages % 100 < hot ? pages % 100 : hot;
	uint64_t chosen = rng_below(random, pages / 100 * hot + of_rest);

	return chosen / hot * 100 + chosen % hot;
}

static void rest(uint64_t ns)
{
	const struct timespec time = { (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) };

	nanosleep(&time, NULL);
}

static void read_pages(void *context, unsigned int thread, unsigned int threads)
{
	struct samepage *samepage = context;
	const struct pages *pages = &samepage->pages;
	const volatile uint64_t *words = pages->words;
	struct rng rng = rng_stream(samepage->seed, thread);
	uint64_t looked = clock_ns(), errors = 0;

	(void)threads;
	while (!__atomic_load_n(&samepage->stop, __ATOMIC_RELAXED)) {
		if (samepage->rest_ms || !samepage->hot_percent)
			rest(samepage->rest_ms ? samepage->rest_ms * 1000000 : LOOK_NS);
		for (int i = 0; i < READS && samepage->hot_percent; i++) {
			uint64_t random = rng_next(&rng), page = hot_page(samepage, random);
			uint64_t word = random % pages->page_words;

			errors += words[page * pages->page_words + word] != pages_word(pages, page, word);
		}
		if (samepage->hot_percent)
			watch_add(thread, READS);
		if (!thread)
			look(samepage, &looked);
	}
	__atomic_fetch_add(&samepage->errors, errors, __ATOMIC_RELAXED);
}

static void check(void *context, unsigned int thread, unsigned int threads)
{
	struct samepage *samepage = context;
	struct share share = share_of(samepage->pages.count, thread, threads);
	uint64_t errors = pages_errors(&samepage->pages, share.from, share.to);

	__atomic_fetch_add(&samepage->errors, errors, __ATOMIC_RELAXED);
}

static void report_part(struct result *result, const char *what, void *start, uint64_t bytes,
			uint64_t counts[static POLICY_MAX_NODES])
{
	uint64_t nodes[POLICY_WORDS];
	char metric[48];

	if (!policy_count_pages(start, bytes, counts))
		return;
	policy_allowed_nodes(nodes);
	for (int node = 0; node < POLICY_MAX_NODES; node++) {
		if (!(nodes[node / 64] >> (node % 64) & 1))
			continue;
		snprintf(metric, sizeof(metric), "%s_pages_node%d", what, node);
		result_count(result, metric, counts[node]);
	}
}

/* Local is the node this process runs on now. */
static void report_places(const struct samepage *samepage, struct result *result)
{
	static uint64_t counts[POLICY_MAX_NODES];
	const struct pages *pages = &samepage->pages;
	uint64_t same_words = pages->same * pages->page_words, local = 0, all;
	uint64_t same_bytes = same_words * sizeof(uint64_t);

	report_part(result, "own", pages->words + same_words, (pages->count - pages->same) * pages->page_words * 8,
		    counts);
	report_part(result, "same", pages->words, same_bytes, counts);
	if (!pages_local(pages, &local, &all)) {
		result_missing(result, "local_share");
		return;
	}
	result_count(result, "local_pages", local);
	result_count(result, "remote_pages", all - local);
	result_real(result, "local_share", (double)local / (double)all);
}

static void report_own(struct result *result, const char *metric, const char *line)
{
	uint64_t value;

	if (ksm_own_counter(line, &value))
		result_count(result, metric, value);
	else
		result_missing(result, metric);
}

int main(int argc, char **argv)
{
	struct samepage samepage = { .hot_percent = 100, .seconds = 5 };
	uint64_t size = UINT64_C(16) << 20, same_percent = 100, passes = 0, passes_before, scanned_before = 0, scanned;
	uint64_t moves_after = 0;
	double interval = 0;
	struct option_row rows[] = {
		{ "size", OPTION_SIZE, &size, "SIZE", "size of the region (default 16M)", 4096, 0, false },
		{ "same", OPTION_COUNT, &same_percent, "PERCENT",
		  "share of the pages that are equal in all processes (default 100)", 0, 100, false },
		{ "hot", OPTION_COUNT, &samepage.hot_percent, "PERCENT",
		  "share of the pages that are read; with 0 the process sleeps (default 100)", 0, 100, false },
		{ "rest", OPTION_COUNT, &samepage.rest_ms, "MS",
		  "sleep so many milliseconds after each 1024 reads (default 0)", 0, 3600000, false },
		{ "passes", OPTION_COUNT, &passes, "N",
		  "end when KSM has scanned all memory N times, where it runs", 1, 0, false },
		{ "seconds", OPTION_SECONDS, &samepage.seconds, "S",
		  "end after so many seconds, where it does not or --passes is not given (default 5)", 0, 0, false },
		{ "move-to", OPTION_COUNT, &samepage.move.cpu, "CPU", "go to this CPU in the midst of it, with --move-after",
		  0, 4095, false },
		{ "move-after", OPTION_COUNT, &moves_after, "N", "when KSM has scanned all memory N times", 1, 0, false },
		{ "forever", OPTION_FLAG, &samepage.forever, NULL, "run until SIGTERM or SIGINT, then print the result",
		  0, 0, false },
		{ "interval", OPTION_SECONDS, &interval, "S",
		  "a line on progress and placement each so many seconds (default: none)", 0, 0, false },
		{ 0 },
	};
	struct pages *pages = &samepage.pages;
	struct setup setup;
	struct result result;
	struct phase phase;
	struct team *team;
	double init_seconds;
	uint64_t reads;
	enum { PASSES_ROW = 4, SECONDS_ROW = 5, MOVE_TO_ROW = 6 };

	stop_by_signals();
	setup_parse(&setup, SETUP_REGION, argc, argv, "samepage",
		    "Random reads of memory that is equal in every process that runs this, for KSM to merge.", rows);
	if (samepage.forever && (rows[PASSES_ROW].given || rows[SECONDS_ROW].given))
		usage_error("--forever has no end: leave out --passes and --seconds");
	if (rows[MOVE_TO_ROW].given != !!moves_after)
		usage_error("--move-to and --move-after go together");
	if (moves_after && setup.threads != 1)
		usage_error("--move-to: one thread moves, not %" PRIu64, setup.threads);
	pages->page_words = (uint64_t)sysconf(_SC_PAGESIZE) / sizeof(uint64_t);
	pages->count = size / sizeof(uint64_t) / pages->page_words;
	pages->same = pages->count * same_percent / 100;
	pages->same_seed = rng_mix(setup.seed + RNG_GAMMA);
	pages->own_seed = rng_mix(pages->same_seed + (uint64_t)getpid() * RNG_GAMMA);
	samepage.seed = pages->own_seed;
	team = team_start(&setup);
	mark("init");
	pages->words = setup_region(&setup, size);
	init_seconds = team_initialise(team, &setup, fill, &samepage);

	mark("ready");
	passes_before = ksm_passes();
	ksm_counter("pages_scanned", &scanned_before);
	samepage.move.at_pass = moves_after ? passes_before + moves_after : 0;
	samepage.last_pass = passes ? passes_before + passes : 0;
	phase_start(&phase);
	samepage.began = phase.began;
	watch_start(setup.threads, interval, pages->words, size);
	team_run(team, read_pages, &samepage);
	phase_stop(&phase);
	reads = watch_work(setup.threads);
	watch_stop();

	/* The thread that has read has moved; local is where that is. */
	if (samepage.move.moved)
		setup_pin((int)samepage.move.cpu);
	/* What belongs to all processes together is read before one of them may end. */
	result_begin(&result);
	result_real(&result, "reads_per_second", (double)reads / phase.seconds);
	result_count(&result, "reads", reads);
	result_count(&result, "pages", pages->count);
	result_count(&result, "same_pages", pages->same);
	report_places(&samepage, &result);
	result_count(&result, "passes", ksm_passes() - passes_before);
	ksm_report(&result);
	if (ksm_counter("pages_scanned", &scanned))
		result_count(&result, "ksm_pages_scanned", scanned - scanned_before);
	else
		result_missing(&result, "ksm_pages_scanned");
	move_report(&samepage.move, &result);
	report_own(&result, "numa_local", "ksm_numa_local");
	report_own(&result, "numa_remote", "ksm_numa_remote");
	mark("done");
	team_run(team, check, &samepage);
	team_stop(team);
	phase_report(&phase, init_seconds, &result);
	result_count(&result, "errors", samepage.errors);
	result_print(&result, "%" PRIu64 " reads of %" PRIu64 " MiB, %" PRIu64 " of %" PRIu64
			      " pages the same everywhere, in %.3f s%s, %" PRIu64 " wrong values",
		     reads, size >> 20, pages->same, pages->count, phase.seconds,
		     stop_signalled() ? " (ended by a signal)" : "", samepage.errors);
	if (samepage.errors)
		fail("%" PRIu64 " values are wrong", samepage.errors);
	return 0;
}
