/*
 * claim(condition, words): the condition holds here. A replay of a counterexample prints the words.
 */
#define claim(condition, words)	atomic { if :: condition :: else -> printf(words); assert(false) fi }

/*
 * Coverage: -DCOVERAGE=name makes reaching a place an error. The checker must then find that error: a model
 * that never gets there proves nothing about it.
 */
#define COVER_INACTIVE_PCID		1	/* a CPU comes back to the process and finds its ASID behind */
#define COVER_LAZY_FLUSH		2	/* a lazy CPU comes back and finds that a flush passed it by */
#define COVER_LAZY_IPI			3	/* a lazy CPU is told that tables are freed, and leaves the process */
#define COVER_IPI_WHILE_SWITCHING	4	/* an IPI is sent to a CPU inside switch_mm_irqs_off() */
#define COVER_CHANGED_BEFORE_FILL	5	/* the fill finds the primary changed since the fault */
#define COVER_REWRITE			6	/* the hook rewrites a slot instead of emptying it */
#define COVER_OLD_VALUE			7	/* a TLB is filled from a replica after the primary changed */
#define COVER_UPGRADED			8	/* a fault gave write permission back before the flush returned */
#define COVER_LINK_REFUSED		9	/* the fill finds that the table it filled was retracted */
#define COVER_DANGLING			10	/* a table is freed that a CPU still has in its paging-structure cache */
#define COVER_WALK_IN_WINDOW		11	/* ... and walks, between the clearing of its bit and its write of CR3 */
#define COVER_REUSED_WHILE_CACHED	12	/* ... and the page is a table again before that CPU flushes */
#define COVER_RCU_WAITS			13	/* the free by RCU waits for a fill */
#define COVER_TABLE_FREED		14	/* disable or exit free a replica table */
#define COVER_FALLBACK			15	/* an access in an atomic context succeeds on the primary root */
#define COVER_PGD_FREE			16	/* the last borrowed reference goes: roots are freed */
#define COVER_MIGRATED			17	/* the table has moved while somebody waited for its lock */
#define COVER_PASS_THROUGH_PMD		18	/* a walk goes through a PMD table of the primary */
#define COVER_TAKEN_BEFORE_LINK		19	/* the fill finds that its replica was taken out of the ring */
#define COVER_HOOK_WAS_FASTER		20	/* the slot of a replica that is taken was zeroed meanwhile */
#ifdef COVERAGE
#define COVER_IF(condition, place)	\
	atomic { if :: COVERAGE == place && (condition) -> printf(#place); assert(false) :: else fi }
#define COVER(place)	\
	atomic { if :: COVERAGE == place -> printf(#place); assert(false) :: else fi };
#else
#define COVER_IF(condition, place)	skip
#define COVER(place)
#endif
