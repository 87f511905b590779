/*
 * M2: a PTE table moves to another node. The page it maps is used by a CPU, dirtied by the hardware, and unmapped by
 * truncate, which holds neither the mmap lock nor a VMA lock: only i_mmap_lock for read, then the table's lock.
 * The fault path is shut out by the VMA lock for write, so a fault waits for the end.
 *
 * (default)        as khugepaged and mremap do it: rmap locks (i_mmap_lock, anon_vma) for write around all of it
 * -DNEVER_NONE     without rmap locks: the slot of the PMD table goes from the old table to the new one directly, the
 *                  locks of both tables held; D bits the hardware set in the old one are merged after the flush
 * -DMIXED          the CPU runs on the primary root; -DPASS_THROUGH its replica links to the primary's table
 */
#define NCPU 1
#ifndef SWITCHERS
#define SWITCHERS 1
#endif
#include "claim.pml"

#ifdef MIXED
#define wanted_root(c)	PRIMARY
#else
#define wanted_root(c)	REPLICA
#endif

#define OLD	1	/* tables */
#define NEW	2
#define R	3	/* the replica of OLD, and of nothing else */

#define P	1	/* leaf entries, all writable */
#define D	2

byte pmd = OLD;
#ifdef PASS_THROUGH
byte replica_pmd = OLD;
#else
byte replica_pmd = R;
#endif
byte leaf[4];
byte psc[NCPU];
byte tlb[NCPU];
#define forget(c)	psc[c] = 0; tlb[c] = 0

#include "cpu.pml"

bool ptl[3];
bool pmd_lock;
byte rmap_readers;	/* i_mmap_lock */
bool rmap_writer;
bool vma_writer;
bool live = true;	/* the page belongs to the file */
bool newer;		/* written since the kernel last looked at D */
bool dirty;		/* the folio's flag */
bool rcu[2];		/* truncate is inside a read-side section */
bool freed;		/* OLD and R */

#define lock(l)		atomic { !l; l = true }
#define slot(c)		(cpu[c].cr3 == PRIMARY -> pmd : replica_pmd)

/* One access by the thread on CPU c. In an atomic block. */
inline access(c, write)
{
	if
	:: tlb[c] != 0 && (!write || (tlb[c] & D)) -> skip	/* a hit */
	:: else ->
		tlb[c] = 0;
		if
		:: psc[c] == 0 -> psc[c] = slot(c)
		:: else
		fi;
		claim(!freed || psc[c] == NEW || psc[c] == 0, "no CPU walks through a table after it was freed");
		if
		:: leaf[psc[c]] & P ->
			if
			:: write && psc[c] != R -> leaf[psc[c]] = leaf[psc[c]] | D
			:: write && psc[c] == R && !(leaf[R] & D) -> goto fault		/* W only with D: a fault */
			:: else
			fi;
			tlb[c] = leaf[psc[c]]
		:: else -> goto fault
		fi
	fi;
	claim(live, "no CPU uses a page after the flush that promised its end");
	if
	:: write -> newer = true
	:: else
	fi
}

proctype Thread(byte c)
{
	byte next_gen, root;
	bool write;

end:	do
	:: atomic {
		running(c);
		if
		:: write = true
		:: write = false
		fi;
		access(c, write);
		write = false
	   }
	:: atomic { c < SWITCHERS && running(c) -> cpu[c].is_lazy = true }
	:: leave_lazy(c)
	:: switch_from_mm(c)
	:: switch_to_mm(c, next_gen, root)
	od;

fault:	atomic { forget(c); write = false };
	/* The fill, where it may: one step, its interleavings are in tables.pml. */
	atomic {
		!vma_writer && !pmd_lock && !ptl[OLD] && !ptl[NEW];
		if
		:: pmd == OLD && (leaf[OLD] & P) ->
			leaf[OLD] = leaf[OLD] | D;
#ifndef PASS_THROUGH
			leaf[R] = leaf[OLD];
			replica_pmd = R
#else
			replica_pmd = OLD
#endif
		:: pmd == NEW && (leaf[NEW] & P) -> replica_pmd = NEW	/* local now: pass-through */
		:: else ->					/* SIGBUS: truncated */
			goto gone
		fi
	};
	goto end;
gone:	skip
}

proctype Hardware(byte c)
{
end:	do
	:: atomic { cpu[c].cr3 != NO_ROOT && slot(c) != 0 && psc[c] != slot(c) -> 
		psc[c] = slot(c);
		claim(!freed || psc[c] == NEW, "no CPU walks through a table after it was freed")
	   }
	:: atomic {
		cpu[c].cr3 != NO_ROOT && psc[c] != 0 && (leaf[psc[c]] & P) && tlb[c] != leaf[psc[c]] ->
		tlb[c] = leaf[psc[c]]
	   }
	:: atomic { cpu[c].ipi != NO_IPI && !cpu[c].irqs_off -> handle_ipi(c) }
	od
}

proctype Migrate()
{
	byte new_gen, i;

	vma_writer = true;			/* the mmap lock, vma_start_write() */
#if !defined(NEVER_NONE) && !defined(BUG_NO_RMAP_LOCK)
	atomic { rmap_readers == 0 -> rmap_writer = true };
#endif
	lock(pmd_lock);
	lock(ptl[OLD]);
#ifdef NEVER_NONE
	lock(ptl[NEW]);
	leaf[NEW] = leaf[OLD];
	pmd = NEW;
	replica_pmd = 0;			/* the hook */
	flush_tlb(true, new_gen, i);
#ifndef BUG_NO_MERGE
	leaf[NEW] = leaf[NEW] | leaf[OLD];
#endif
	leaf[OLD] = 0;
	ptl[NEW] = false;
#else
#ifdef BUG_COPY_BEFORE_FLUSH
	leaf[NEW] = leaf[OLD];
#endif
	pmd = 0;				/* pmdp_collapse_flush() */
	replica_pmd = 0;
	flush_tlb(true, new_gen, i);
#ifndef BUG_COPY_BEFORE_FLUSH
	leaf[NEW] = leaf[OLD];
#endif
	leaf[OLD] = 0;
	pmd = NEW;				/* pmd_populate() */
#endif
	atomic { ptl[OLD] = false; pmd_lock = false; rmap_writer = false; vma_writer = false };
	/* pte_free_defer() */
#ifndef BUG_FREE_WITHOUT_RCU
	atomic { !rcu[0] && !cpu[0].irqs_off };
#endif
	freed = true
}

/* truncate_inode_pages(): unmap_mapping_pages(), then the page is freed. Or the same for the pages of a device. */
proctype Truncate()
{
	byte t, new_gen, i;
	byte old;

	atomic { !rmap_writer -> rmap_readers++ };
again:	rcu[0] = true;
	t = pmd;				/* zap_pmd_range(): pmd_none() means nothing is mapped */
	if
	:: t == 0 -> goto out
	:: else
	fi;
	lock(ptl[t]);				/* pte_offset_map_lock() */
	claim(!freed || t != OLD, "nobody uses a table after it was freed");
	if
	:: pmd != t -> COVER(COVER_MIGRATED) ptl[t] = false; rcu[0] = false; goto again
	:: else
	fi;
	atomic { old = leaf[t]; leaf[t] = 0 };
	if
	:: t == OLD -> leaf[R] = 0		/* the hook */
	:: else
	fi;
	dirty = dirty || (old & D);
	flush_tlb(false, new_gen, i);
	atomic { ptl[t] = false };
out:	atomic { rcu[0] = false; rmap_readers-- };
	atomic {
		claim((leaf[OLD] & P) == 0 && (leaf[NEW] & P) == 0, "truncate leaves no mapping behind");
		claim(!newer || dirty, "no dirty bit lost");
		live = false
	}
}

init
{
	atomic {
		leaf[OLD] = P;
		leaf[R] = P;
		run Thread(0); run Hardware(0);
		run Migrate();
		run Truncate()
	}
}
