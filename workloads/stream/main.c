/* STREAM: memory bandwidth, and, on the memory of a chosen node, interference for another program. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "../common/clock.h"
#include "../common/fail.h"
#include "../common/marks.h"
#include "../common/result.h"
#include "../common/setup.h"
#include "../common/stop.h"
#include "../common/team.h"
#include "kernels.h"

struct stream {
	struct team *team;
	struct arrays arrays;
	uint64_t most_iterations; /* 0: no limit */
	double most_seconds;	  /* 0: no limit */
	uint64_t began;
	bool stop; /* written by thread 0 between barriers */
	uint64_t iterations;
	double best_seconds[KERNELS];
	uint64_t errors;
};

static void fill(void *context, unsigned int thread, unsigned int threads)
{
	struct stream *stream = context;
	struct share share = share_of(stream->arrays.elements, thread, threads);

	arrays_fill(&stream->arrays, share.from, share.to);
}

/* Whole rounds only, so that the result can be checked whenever it ends. */
static bool is_over(const struct stream *stream)
{
	if (stop_signalled())
		return true;
	if (stream->most_iterations && stream->iterations >= stream->most_iterations)
		return true;
	return stream->most_seconds > 0 && clock_seconds(stream->began, clock_ns()) >= stream->most_seconds;
}

static void hammer(void *context, unsigned int thread, unsigned int threads)
{
	struct stream *stream = context;
	struct share share = share_of(stream->arrays.elements, thread, threads);

	while (!stream->stop) {
		for (enum kernel kernel = COPY; kernel < KERNELS; kernel++) {
			uint64_t began = clock_ns();

			kernel_run(kernel, &stream->arrays, share.from, share.to);
			team_barrier(stream->team);
			if (!thread)
				stream->best_seconds[kernel] = fmin(stream->best_seconds[kernel],
								    clock_seconds(began, clock_ns()));
		}
		if (!thread) {
			stream->iterations++;
			stream->stop = is_over(stream);
		}
		team_barrier(stream->team);
	}
}

static void check(void *context, unsigned int thread, unsigned int threads)
{
	struct stream *stream = context;
	struct share share = share_of(stream->arrays.elements, thread, threads);
	uint64_t errors = arrays_errors(&stream->arrays, stream->iterations, share.from, share.to);

	__atomic_fetch_add(&stream->errors, errors, __ATOMIC_RELAXED);
}

static void report(const struct stream *stream, const struct phase *phase, struct result *result)
{
	uint64_t bytes = 0;
	char metric[64];

	for (enum kernel kernel = COPY; kernel < KERNELS; kernel++) {
		double moved = (double)(kernel_bytes(kernel) * stream->arrays.elements);

		snprintf(metric, sizeof(metric), "%s_bytes_per_second", kernel_name(kernel));
		result_real(result, metric, moved / stream->best_seconds[kernel]);
		bytes += kernel_bytes(kernel) * stream->arrays.elements * stream->iterations;
	}
	result_count(result, "iterations", stream->iterations);
	result_count(result, "bytes_moved", bytes);
	result_real(result, "bytes_per_second", (double)bytes / phase->seconds);
	result_count(result, "errors", stream->errors);
}

int main(int argc, char **argv)
{
	uint64_t size = UINT64_C(96) << 20, node = 0;
	struct stream stream = { 0 };
	bool forever = false;
	enum { SIZE_ROW, NODE_ROW, ITERATIONS_ROW, SECONDS_ROW };
	struct option_row rows[] = {
		{ "size", OPTION_SIZE, &size, "SIZE", "size of the three arrays together (default 96M)", 12288, 0, false },
		{ "node", OPTION_COUNT, &node, "NODE", "node whose memory to use: short for --memory bind:NODE", 0,
		  POLICY_MAX_NODES - 1, false },
		{ "iterations", OPTION_COUNT, &stream.most_iterations, "N",
		  "rounds of the four kernels (default 10 without --seconds)", 1, 0, false },
		{ "seconds", OPTION_SECONDS, &stream.most_seconds, "S", "end after the first round past so many seconds",
		  0, 0, false },
		{ "forever", OPTION_FLAG, &forever, NULL, "run until SIGTERM or SIGINT, then print the result", 0, 0,
		  false },
		{ 0 },
	};
	struct setup setup;
	struct result result;
	struct phase phase;
	double init_seconds;
	double *region;

	/* Before anything else. */
	stop_by_signals();
	setup_parse(&setup, SETUP_REGION, argc, argv, "stream",
		    "Memory bandwidth by copy, scale, add and triad (STREAM); interference on a node.", rows);
	if (forever && (rows[ITERATIONS_ROW].given || rows[SECONDS_ROW].given))
		usage_error("--forever has no end: leave out --iterations and --seconds");
	if (!forever && !rows[ITERATIONS_ROW].given && !rows[SECONDS_ROW].given)
		stream.most_iterations = 10;
	if (rows[NODE_ROW].given) {
		char text[32];

		if (policy_is_set(&setup.memory))
			usage_error("--node and --memory both place the arrays: give one of them");
		snprintf(text, sizeof(text), "bind:%" PRIu64, node);
		setup.memory = policy_parse("node", text);
	}
	stream.arrays.elements = size / sizeof(double) / 3;
	for (int kernel = 0; kernel < KERNELS; kernel++)
		stream.best_seconds[kernel] = INFINITY;
	stream.team = team_start(&setup);
	mark("init");
	region = setup_region(&setup, size);
	stream.arrays.a = region;
	stream.arrays.b = region + stream.arrays.elements;
	stream.arrays.c = region + 2 * stream.arrays.elements;
	init_seconds = team_initialise(stream.team, &setup, fill, &stream);

	phase_begin(&phase);
	stream.began = clock_ns();
	team_run(stream.team, hammer, &stream);
	phase_end(&phase);
	team_run(stream.team, check, &stream);
	team_stop(stream.team);

	result_begin(&result);
	report(&stream, &phase, &result);
	phase_report(&phase, init_seconds, &result);
	region_report(region, size, &result);
	result_print(&result, "%" PRIu64 " rounds over %" PRIu64 " MiB in %.3f s%s, %" PRIu64 " wrong values",
		     stream.iterations, size >> 20, phase.seconds, stop_signalled() ? " (ended by a signal)" : "",
		     stream.errors);
	if (stream.errors)
		fail("%" PRIu64 " values are wrong", stream.errors);
	return 0;
}
