/* Same-page merging (KSM): what the kernel counts, of the machine and of this process. */
#ifndef NUMALAB_KSM_H
#define NUMALAB_KSM_H

#include <stdbool.h>
#include <stdint.h>

#include "result.h"

/* The number in /sys/kernel/mm/ksm/NAME; false: this kernel has no such file. */
bool ksm_counter(const char *name, uint64_t *value);

/* The number on the line NAME of /proc/self/ksm_stat; false: this kernel has no such line. */
bool ksm_own_counter(const char *name, uint64_t *value);

/* Is memory of this machine being scanned now? */
bool ksm_runs(void);

/* How often all mergeable memory of the machine has been scanned; 0 without KSM. */
uint64_t ksm_passes(void);

/* Wait until it has been scanned so many times more; returns at once where nothing is scanned. */
void ksm_settle(uint64_t passes);

/* Memory of this process becomes mergeable: one region (madvise), or everything, from now on (prctl). */
void ksm_merge_region(void *start, uint64_t bytes);
void ksm_merge_process(void);

/* Metrics ksm_pages_shared, ksm_pages_sharing, ksm_numa_copies, merged_pages; null where the kernel has none. */
void ksm_report(struct result *result);

#endif
