#define _GNU_SOURCE
#include "move.h"

#include <sys/syscall.h>
#include <unistd.h>

#include "../common/clock.h"
#include "../common/ksm.h"
#include "../common/policy.h"
#include "../common/setup.h"

/* Pages have followed a process when so many of a hundred are on its node. */
#define FOLLOWED 95

bool pages_local(const struct pages *pages, uint64_t *local, uint64_t *all)
{
	static uint64_t counts[POLICY_MAX_NODES];
	unsigned int cpu, node = 0;

	*all = 0;
	if (!policy_count_pages(pages->words, pages->same * pages->page_words * sizeof(uint64_t), counts))
		return false;
	for (int i = 0; i < POLICY_MAX_NODES; i++)
		*all += counts[i];
	if (!*all || syscall(SYS_getcpu, &cpu, &node, NULL) || node >= POLICY_MAX_NODES)
		return false;
	*local = counts[node];
	return true;
}

void move_look(struct move *move, const struct pages *pages)
{
	uint64_t local, all;

	if (!move->at_pass || move->followed)
		return;
	if (!move->moved) {
		if (!ksm_runs() || ksm_passes() < move->at_pass)
			return;
		setup_pin((int)move->cpu);
		move->moved_pass = ksm_passes();
		move->moved = clock_ns();
	} else if (pages_local(pages, &local, &all) && local * 100 >= all * FOLLOWED) {
		move->followed = clock_ns();
		move->followed_pass = ksm_passes();
	}
}

void move_report(const struct move *move, struct result *result)
{
	if (!move->followed) {
		result_missing(result, "follow_seconds");
		result_missing(result, "follow_passes");
		return;
	}
	result_real(result, "follow_seconds", clock_seconds(move->moved, move->followed));
	result_count(result, "follow_passes", move->followed_pass - move->moved_pass);
}
