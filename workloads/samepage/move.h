/* A process that goes to another node in the midst of it: how long its pages take to come after. */
#ifndef NUMALAB_SAMEPAGE_MOVE_H
#define NUMALAB_SAMEPAGE_MOVE_H

#include <stdbool.h>
#include <stdint.h>

#include "../common/result.h"
#include "pages.h"

struct move {
	uint64_t cpu;	  /* where to */
	uint64_t at_pass; /* of KSM; 0: it stays where it is */
	/* when, and in which pass; 0: not yet */
	uint64_t moved, moved_pass;
	uint64_t followed, followed_pass;
};

/*
 * Of the pages that are equal everywhere, how many lie on the node this thread runs on now, and how many in all; false
 * when the kernel cannot tell.
 */
bool pages_local(const struct pages *pages, uint64_t *local, uint64_t *all);

/* Go there when it is time to, and notice when the pages have come after. */
void move_look(struct move *move, const struct pages *pages);

/* Metrics follow_seconds, follow_passes; null when it did not move, or they did not come. */
void move_report(const struct move *move, struct result *result);

#endif
