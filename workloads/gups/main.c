/* GUPS: random updates of a table much larger than caches and TLB; nearly every update is a TLB miss. */
#include <inttypes.h>

#include "../common/clock.h"
#include "../common/fail.h"
#include "../common/marks.h"
#include "../common/result.h"
#include "../common/setup.h"
#include "../common/team.h"
#include "table.h"

/* HPC Challenge accepts lost updates in at most this share of the words when threads collide. */
#define TOLERATED_SHARE 0.01

struct gups {
	uint64_t *table;
	uint64_t words;
	uint64_t updates;
	uint64_t seed;
	uint64_t errors;
};

static void fill(void *context, unsigned int thread, unsigned int threads)
{
	struct gups *gups = context;
	struct share share = share_of(gups->words, thread, threads);

	table_fill(gups->table, share.from, share.to);
}

static void update(void *context, unsigned int thread, unsigned int threads)
{
	struct gups *gups = context;
	struct share share = share_of(gups->updates, thread, threads);

	table_update(gups->table, gups->words, share.to - share.from, gups->seed, thread);
}

static void undo(void *context, unsigned int thread, unsigned int threads)
{
	struct gups *gups = context;
	struct share share = share_of(gups->updates, thread, threads);

	table_update_atomic(gups->table, gups->words, share.to - share.from, gups->seed, thread);
}

static void count_errors(void *context, unsigned int thread, unsigned int threads)
{
	struct gups *gups = context;
	struct share share = share_of(gups->words, thread, threads);

	__atomic_fetch_add(&gups->errors, table_errors(gups->table, share.from, share.to), __ATOMIC_RELAXED);
}

int main(int argc, char **argv)
{
	uint64_t size = UINT64_C(64) << 20, updates = 2000000, tolerated;
	bool verify = false;
	struct option_row rows[] = {
		{ "size", OPTION_SIZE, &size, "SIZE", "size of the table (default 64M)", 4096, 0, false },
		{ "updates", OPTION_COUNT, &updates, "N", "number of updates, all threads together (default 2M)", 1, 0,
		  false },
		{ "verify", OPTION_FLAG, &verify, NULL, "undo all updates afterwards and check every word", 0, 0,
		  false },
		{ 0 },
	};
	struct setup setup;
	struct gups gups = { 0 };
	struct result result;
	struct phase phase;
	struct team *team;
	double init_seconds;

	setup_parse(&setup, SETUP_REGION, argc, argv, "gups", "Random updates of a large table (HPC Challenge GUPS).",
		    rows);
	gups.words = size / sizeof(*gups.table);
	gups.updates = updates;
	gups.seed = setup.seed;
	team = team_start(&setup);
	mark("init");
	gups.table = setup_region(&setup, size);
	init_seconds = team_initialise(team, &setup, fill, &gups);

	phase_begin(&phase);
	team_run(team, update, &gups);
	phase_end(&phase);

	result_begin(&result);
	result_count(&result, "updates", updates);
	result_real(&result, "updates_per_second", (double)updates / phase.seconds);
	result_count(&result, "table_bytes", gups.words * sizeof(*gups.table));
	phase_report(&phase, init_seconds, &result);
	region_report(gups.table, size, &result);
	if (verify) {
		team_run(team, undo, &gups);
		team_run(team, count_errors, &gups);
		result_count(&result, "errors", gups.errors);
	} else {
		result_missing(&result, "errors");
	}
	team_stop(team);
	result_print(&result, "%" PRIu64 " updates of a table of %" PRIu64 " MiB in %.3f s, %s", updates, size >> 20,
		     phase.seconds, !verify ? "not verified" : gups.errors ? "verified: errors" : "verified");
	/* One thread loses nothing; several may lose updates to each other. */
	tolerated = setup.threads == 1 ? 0 : (uint64_t)(TOLERATED_SHARE * (double)gups.words);
	if (gups.errors > tolerated)
		fail("verification: %" PRIu64 " of %" PRIu64 " words are wrong (at most %" PRIu64 " are tolerated)",
		     gups.errors, gups.words, tolerated);
	return 0;
}
