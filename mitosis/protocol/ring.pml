/*
 * The hook without a lock: free_pte_range() and its like clear a slot of a table (here: the link of a dying range
 * in a PMD table) without that table's lock, while somebody else makes the first replica of that very table
 * because a live range next to it needs one. What keeps the dying link out of the new replica?
 *
 * Stores wait in a store buffer of one entry on each side (x86: a load may pass an earlier store).
 *
 * (default)        the fill: a new replica is empty, and only the slot of the live range is written (r1, r2)
 * -DBULK           an eager builder copies all slots: into a replica that is on the ring already, each copied slot
 *                  read again after a barrier, linked into its parent last, and with a barrier in the hook
 * -DREMOVE         instead: the hook walks a ring of two replicas while one of them is taken out of it
 */
#include "claim.pml"

#define DYING	1	/* the table of the dying range, and what a slot that points to it holds */

byte dying_slot = DYING;	/* in the primary's table */
byte replica_slot;		/* the same slot in the replica */
bool on_ring;			/* the replica is on the ring of the primary's table */
bool linked;			/* the replica is linked into its parent: hardware can come here */
bool freed;			/* the dying table */

/* One store of each side may wait. */
bool free_waits, build_waits;
byte build_value;

#define drain_free()	!free_waits
#define drain_build()	!build_waits

proctype StoreBuffers()
{
end:	do
	:: atomic { free_waits -> dying_slot = 0; free_waits = false }
	:: atomic { build_waits -> replica_slot = build_value; build_waits = false }
	od
}

/* munmap() under the mmap lock for read: the VMA is gone, its leaves are zapped, now its table goes. */
proctype Free()
{
	free_waits = true;			/* pmd_clear(): a plain store */
#if defined(BULK) && !defined(BUG_NO_BARRIER_IN_HOOK)
	drain_free();
#endif
	if
	:: on_ring ->
		if
		:: replica_slot != 0 -> replica_slot = 0
		:: else
		fi
	:: else
	fi;
	drain_free();				/* flush_tlb_mm_range(): a locked increment */
	freed = true;
	claim(!linked || replica_slot != DYING, "nothing in memory leads to a page that is freed")
}

/* The fault in the live range, or the eager builder. Both under the lock of the primary's table. */
proctype Build()
{
	byte v;

#ifdef BULK
#ifdef BUG_COPY_BEFORE_RING
	v = dying_slot;
	replica_slot = v;
	on_ring = true;
#else
	on_ring = true;
	v = dying_slot;
	atomic { build_waits = true; build_value = v };
#ifndef BUG_NO_RECHECK
	drain_build();
	if
	:: dying_slot != v -> replica_slot = 0
	:: else
	fi;
#endif
	drain_build();
#endif
#else
	on_ring = true;				/* empty: the slot of the live range is another one */
#endif
	linked = true;
	claim(!freed || replica_slot != DYING, "nothing in memory leads to a page that is freed")
}

/* At the end too. */
proctype Watch()
{
	freed && linked;
	claim(replica_slot != DYING, "nothing in memory leads to a page that is freed")
}

#ifdef REMOVE
/* primary -> FIRST -> SECOND -> primary; NONE is NULL. The primary is the end of a walk as NONE is. */
#define PRIMARY	0
#define FIRST	1
#define SECOND	2
#define NONE	3

byte next[3];			/* ptdesc.pt_repl */
byte slots[3];

proctype Hook()
{
	byte r;

	r = next[PRIMARY];
	do
	:: r != PRIMARY && r != NONE -> slots[r] = 0; r = next[r]
	:: else -> break
	od;
	freed = true;			/* the dying table, after the flush */
	claim(next[PRIMARY] != FIRST || slots[FIRST] != DYING, "nothing in memory leads to a page that is freed");
	claim(next[FIRST] == PRIMARY || slots[SECOND] != DYING, "nothing in memory leads to a page that is freed")
}

/* pgrepl_shrink_take(), under the lock of the primary, which the hook does not have */
proctype Take()
{
	if
	:: next[PRIMARY] = next[FIRST];
#ifdef BUG_TAKEN_FORGETS_THE_RING
		next[FIRST] = NONE	/* as pgrepl_detach() does, where there is no walker */
#endif
	:: next[FIRST] = next[SECOND];
#ifdef BUG_TAKEN_FORGETS_THE_RING
		next[SECOND] = NONE
#endif
	fi
}

init
{
	atomic {
		next[PRIMARY] = FIRST;
		next[FIRST] = SECOND;
		next[SECOND] = PRIMARY;
		slots[FIRST] = DYING;
		slots[SECOND] = DYING;
		run Hook();
		run Take()
	}
}
#else
init
{
	atomic { run StoreBuffers(); run Free(); run Build(); run Watch() }
}
#endif
