#include "ksm.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>

#include "fail.h"

#define SYSFS "/sys/kernel/mm/ksm/"
/* Linux 6.4; headers may be older. */
#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#endif
/* A pass takes longer than this, and a look costs next to nothing. */
#define LOOK_NS 20000000

bool ksm_counter(const char *name, uint64_t *value)
{
	char path[96];
	FILE *file;
	bool known;

	snprintf(path, sizeof(path), SYSFS "%s", name);
	file = fopen(path, "re");
	if (!file)
		return false;
	known = fscanf(file, "%" SCNu64, value) == 1;
	fclose(file);
	return known;
}

bool ksm_own_counter(const char *name, uint64_t *value)
{
	FILE *file = fopen("/proc/self/ksm_stat", "re");
	size_t length = strlen(name);
	char line[128];
	bool known = false;

	if (!file)
		return false;
	while (!known && fgets(line, sizeof(line), file))
		known = !strncmp(line, name, length) && line[length] == ' ' &&
			sscanf(line + length, "%" SCNu64, value) == 1;
	fclose(file);
	return known;
}

bool ksm_runs(void)
{
	uint64_t run;

	return ksm_counter("run", &run) && run == 1;
}

uint64_t ksm_passes(void)
{
	uint64_t passes = 0;

	ksm_counter("full_scans", &passes);
	return passes;
}

void ksm_settle(uint64_t passes)
{
	const struct timespec look = { .tv_nsec = LOOK_NS };
	uint64_t end = ksm_passes() + passes;

	while (ksm_runs() && ksm_passes() < end)
		nanosleep(&look, NULL);
}

void ksm_merge_region(void *start, uint64_t bytes)
{
	if (madvise(start, bytes, MADV_MERGEABLE))
		fail("this kernel cannot merge equal pages (madvise: %s)", strerror(errno));
}

void ksm_merge_process(void)
{
	if (prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0))
		fail("this kernel cannot merge equal pages of a whole process (prctl: %s)", strerror(errno));
}

static void report_one(struct result *result, const char *metric, bool (*counter)(const char *, uint64_t *),
		       const char *name)
{
	uint64_t value;

	if (counter(name, &value))
		result_count(result, metric, value);
	else
		result_missing(result, metric);
}

void ksm_report(struct result *result)
{
	report_one(result, "ksm_pages_shared", ksm_counter, "pages_shared");
	report_one(result, "ksm_pages_sharing", ksm_counter, "pages_sharing");
	report_one(result, "ksm_numa_copies", ksm_counter, "numa_copies");
	report_one(result, "merged_pages", ksm_own_counter, "ksm_merging_pages");
}
