/*
 * Replicas are taken back when memory is short, by somebody who holds neither the mmap lock nor a VMA lock: one PTE
 * table, one PMD table above it, a replica of each, and the slot of a PUD table that stays, as does its replica. The
 * slot that linked a replica then leads to the primary's table: a pass-through, in PMD and in PUD tables.
 *
 * (default)        lazy: the worker empties the slot of the PUD table, and the next fault fills
 * -DEAGER          tables get replicas when they are made; a thread of another domain fills ours; the worker builds
 * -DOPS=n          so many munmaps and calls for memory together; -DSWITCHERS=1 the CPU switches and goes lazy
 */
#define NCPU 1
#ifndef OPS
#define OPS 2
#endif
#ifndef SWITCHERS
#define SWITCHERS 0
#endif
#ifndef TABLES
#define TABLES 9	/* pages for tables, 1 .. TABLES-1; 0 means none */
#endif
#include "claim.pml"

#define wanted_root(c)	REPLICA

byte pud;			/* slot of the primary's PUD table: a PMD table of the primary */
byte replica_pud;		/* the same slot in the replica: its replica, or (pass-through) the PMD table itself */
byte psc_pmd[NCPU];		/* paging-structure caches: the PMD table for our address */
byte psc_pte[NCPU];		/* ... and the PTE table */
bool dangling_pmd[NCPU];	/* ghosts: that table was freed since */
bool dangling_pte[NCPU];
#define forget(c)	psc_pmd[c] = 0; psc_pte[c] = 0; dangling_pmd[c] = false; dangling_pte[c] = false

#include "cpu.pml"

#define THREAD	0	/* who is inside rcu_read_lock() */
#define OTHERS	1
#define HOOK	2

bool used[TABLES];	/* allocated, or waiting to be freed */
byte slot[TABLES];	/* of a PMD table: the PTE table; of a PTE table: whether the leaf is present */
byte ring[TABLES];	/* the replica of this table of the primary (ptdesc.pt_repl) */
bool whole[TABLES];	/* ghost: a replica of a PMD table with all that the primary's other slots have */
bool ptl[TABLES];
bool page_table_lock;	/* of the PUD table */
bool walk;		/* pgrepl_mm.walk */
bool mmap_lock;		/* for write, or by munmap() while it frees */
bool mapped = true;
byte vma_readers;
bool rcu[3];
byte ops;

#define lock(l)		atomic { !l; l = true }

/* The lowest free page: reuse as early as it can be. */
inline allocate(t)
{
	t = 1;
	do
	:: t < TABLES && used[t] -> t++
	:: else -> break
	od;
	claim(t < TABLES, "(a limit of the model: enough pages for tables)");
	used[t] = true;
	slot[t] = 0;
	ring[t] = 0;
	whole[t] = false
}

#define leads_to(t)	(pud == t || replica_pud == t || (pud != 0 && slot[pud] == t) || \
			 (replica_pud != 0 && slot[replica_pud] == t))

inline release(t)
{
	atomic {
		if
		:: t != 0 ->
			claim(!leads_to(t), "nothing in memory leads to a page that is freed");
			used[t] = false;
			slot[t] = 0;
			ring[t] = 0;
			whole[t] = false;
			if
			:: psc_pmd[0] == t -> dangling_pmd[0] = true
			:: else
			fi;
			if
			:: psc_pte[0] == t -> dangling_pte[0] = true
			:: else
			fi;
			t = 0
		:: else
		fi
	}
}

#define looks_at(t)	claim(used[t], "nobody uses a table after it was freed")

/* A walk by CPU c reads what its caches lead to. */
#define check_walk(c)	claim(!dangling_pmd[c] && !dangling_pte[c] || in_switch_window(c), \
			      "no CPU walks through a table after it was freed")

/* CPU c, user mode. In an atomic block. */
inline access(c)
{
	if
	:: psc_pte[c] == 0 && psc_pmd[c] == 0 -> psc_pmd[c] = replica_pud
	:: else
	fi;
	check_walk(c);
	COVER_IF(psc_pmd[c] != 0 && psc_pmd[c] == pud, COVER_PASS_THROUGH_PMD);
	if
	:: psc_pte[c] == 0 && psc_pmd[c] != 0 -> psc_pte[c] = slot[psc_pmd[c]]
	:: else
	fi;
	if
	:: psc_pte[c] != 0 && slot[psc_pte[c]] -> skip
	:: else ->
		forget(c);
		goto fault
	fi
}

/*
 * Fill the replica of our domain: pgrepl_fill_domain(). The VMA lock keeps the tables of the primary where they are.
 * Whether there is memory is open at each step.
 */
inline fill(me)
{
	rcu[me] = true;
	atomic { pm = pud; pt = (pm != 0 -> slot[pm] : 0) };
	if
	:: pt == 0 || !slot[pt] -> goto filled
	:: else
	fi;
#ifndef BUG_FILL_BEHIND_PASS_THROUGH
	rm = replica_pud;			/* pgrepl_hw_walk() */
	if
	:: rm == pm -> goto filled		/* passes through */
	:: rm != pm && rm != 0 ->
		looks_at(rm);
		if
		:: slot[rm] == pt -> goto filled
		:: else
		fi
	:: else
	fi;
#endif
	lock(ptl[pt]);				/* pgrepl_fill_leaf() */
	atomic {
		rt = ring[pt];
		if
		:: rt == 0 -> allocate(rt); ring[pt] = rt
		:: rt == 0 -> rt = pt		/* no memory: passes through */
		:: rt != 0
		fi;
		slot[rt] = slot[pt];
		ptl[pt] = false
	};
	lock(ptl[pm]);				/* pgrepl_fill_link(2) */
	if
#ifndef BUG_NO_RING_RECHECK
	:: atomic { rt != pt && ring[pt] != rt -> ptl[pm] = false; COVER(COVER_TAKEN_BEFORE_LINK) goto filled }
#endif
	:: else
	fi;
	atomic {
		rm = ring[pm];
		if
		:: rm == 0 -> allocate(rm); ring[pm] = rm
		:: rm == 0 -> rm = pm
		:: rm != 0
		fi;
		if
#ifndef BUG_FILL_BEHIND_PASS_THROUGH
		:: rm != pm && slot[rm] == pt -> skip
#endif
		:: rm == pm -> skip
		:: else -> slot[rm] = rt
		fi;
		ptl[pm] = false
	};
	lock(page_table_lock);			/* pgrepl_fill_link(3) */
	if
#ifndef BUG_NO_RING_RECHECK
	:: atomic { rm != pm && ring[pm] != rm -> page_table_lock = false; goto filled }
#endif
	:: else
	fi;
	atomic {
		if
#ifndef BUG_FILL_BEHIND_PASS_THROUGH
		:: replica_pud == pm -> skip	/* passes through since: left to the worker */
#endif
		:: else ->
			replica_pud = rm;
#ifdef EAGER
			claim(rm == pm || whole[rm], "an eager replica that is linked has all the primary has")
#endif
		fi;
		page_table_lock = false
	};
filled:
	atomic { rcu[me] = false; pm = 0; pt = 0; rm = 0; rt = 0 }
}

proctype Thread(byte c)
{
	byte next_gen, root, pm, pt, rm, rt;

end:	do
	:: atomic { running(c) && mapped -> access(c) }
	:: atomic { c < SWITCHERS && running(c) -> cpu[c].is_lazy = true }
	:: leave_lazy(c)
	:: switch_from_mm(c)
	:: switch_to_mm(c, next_gen, root)
	od;

fault:	if
	:: atomic { mapped -> vma_readers++ }
	:: atomic { !mapped -> goto end }
	fi;
	/* handle_mm_fault(): none -> present, each under its lock; eager: pgrepl_populated(), there or passing through */
	atomic {
		!page_table_lock;
		if
		:: pud == 0 ->
			allocate(pm);
			pud = pm;
#ifdef EAGER
			if
			:: allocate(rm); whole[rm] = true; ring[pm] = rm; replica_pud = rm
			:: replica_pud = pm
			fi
#endif
		:: else
		fi;
		pm = 0;
		rm = 0
	};
	atomic {
		!ptl[pud];
		if
		:: slot[pud] == 0 ->
			allocate(pt);
			slot[pud] = pt;
#ifdef EAGER
			if
			:: ring[pud] != 0 -> allocate(rt); ring[pt] = rt; slot[ring[pud]] = rt
			:: ring[pud] != 0 -> slot[ring[pud]] = pt
			:: else
			fi
#endif
		:: else
		fi;
		pt = 0;
		rt = 0
	};
	pt = slot[pud];
	atomic {
		!ptl[pt];
		slot[pt] = 1;
#ifdef EAGER
		if
		:: ring[pt] != 0 -> slot[ring[pt]] = 1
		:: else
		fi;
#endif
		pt = 0
	};
	fill(THREAD);
	vma_readers--;
	goto end
}

#ifdef EAGER
/* A thread of another domain has a page fault next to ours, once, and fills the replicas of all. */
proctype Other()
{
	byte pm, pt, rm, rt;

end:	atomic { mapped && slot[pud] != 0 -> vma_readers++ };
	fill(OTHERS);
	vma_readers--
}
#endif

/* Hardware of CPU c: it may walk whenever a root is loaded. With EAGER, which is about fills, it only does as told. */
proctype Hardware(byte c)
{
end:	do
#ifndef EAGER
	:: atomic { cpu[c].cr3 != NO_ROOT && replica_pud != 0 && psc_pmd[c] != replica_pud ->
		psc_pmd[c] = replica_pud;
		dangling_pmd[c] = false
	   }
	:: atomic { cpu[c].cr3 != NO_ROOT && psc_pmd[c] != 0 && slot[psc_pmd[c]] != 0 && psc_pte[c] != slot[psc_pmd[c]] ->
		check_walk(c);
		psc_pte[c] = slot[psc_pmd[c]];
		dangling_pte[c] = false
	   }
	:: atomic { cpu[c].cr3 != NO_ROOT && (dangling_pmd[c] || dangling_pte[c]) -> check_walk(c) }
#endif
	:: atomic { cpu[c].ipi != NO_IPI && !cpu[c].irqs_off -> handle_ipi(c) }
	od
}

/* free_pgd_range() clears the entry without the lock of the upper table; then pgrepl_free_tlb(). */
inline detach(t, r)
{
#ifndef BUG_NO_WALK_LOCK
	lock(walk);
#endif
	atomic {
		r = ring[t];
		ring[t] = 0;
		walk = false
	}
}

proctype Munmap()
{
	byte pm, pt, rm, rt, u, new_gen, i;

end:	do
	:: atomic { ops < OPS && vma_readers == 0 && !mmap_lock -> ops++; mmap_lock = true; mapped = false };
		pm = pud;
		if
		:: pm != 0 && slot[pm] != 0 ->
			pt = slot[pm];
			lock(ptl[pt]);			/* the leaf, with its hook */
			atomic {
				slot[pt] = 0;
				if
				:: ring[pt] != 0 -> slot[ring[pt]] = 0
				:: else
				fi;
				ptl[pt] = false
			};
			rcu[HOOK] = true;
			slot[pm] = 0;			/* free_pte_range() */
			u = ring[pm];
			if
			:: u != 0 -> atomic { looks_at(u); slot[u] = 0 }
			:: else
			fi;
			rcu[HOOK] = false;
			detach(pt, rt);
			if
			:: skip				/* the PMD table serves others, too */
			:: pud = 0;			/* free_pmd_range() */
				replica_pud = 0;
				detach(pm, rm)
			fi;
			flush_tlb(true, new_gen, i);
			release(rt);
			release(pt);
			release(rm);
			if
			:: pud == 0 -> release(pm)
			:: else
			fi
		:: else
		fi;
		atomic { pm = 0; u = 0; mapped = true; mmap_lock = false }
	od
}

/* Slots are replaced by cmpxchg: the zero of a hook that is at it without the lock must stay. */
inline pass_through(s, replica, primary)
{
	if
	:: s == replica ->
#ifdef BUG_PLAIN_STORE
		s = primary
#else
		atomic {
			if
			:: s == replica -> s = primary
			:: else -> COVER(COVER_HOOK_WAS_FASTER) skip
			fi
		}
#endif
	:: else
	fi
}

/* Reclaim, or the OOM notifier, from any context: pgrepl_shrink(). */
proctype Shrinker()
{
	byte pm, pt, rm, rt, new_gen, i;

end:	do
	:: atomic { ops < OPS && pud != 0 -> ops++ };
		lock(walk);
		pm = pud;
		if
		:: pm != 0 ->
			looks_at(pm);
			lock(ptl[pm]);			/* pgrepl_shrink_ptes() */
			looks_at(pm);
			pt = slot[pm];
			if
			:: pt != 0 ->
				looks_at(pt);
				lock(ptl[pt]);
				looks_at(pt);
				rt = ring[pt];
				if
				:: rt != 0 && ring[pm] != 0 -> pass_through(slot[ring[pm]], rt, pt)
				:: else
				fi;
				atomic { ring[pt] = 0; ptl[pt] = false }
			:: else
			fi;
			ptl[pm] = false;
			lock(page_table_lock);		/* pgrepl_shrink_pmd() */
			if
			:: pud == pm ->
				lock(ptl[pm]);
				rm = ring[pm];
				if
				:: rm != 0 -> pass_through(replica_pud, rm, pm)
				:: else
				fi;
				atomic { ring[pm] = 0; ptl[pm] = false }
			:: else
			fi;
			page_table_lock = false
		:: else
		fi;
		atomic { walk = false; pm = 0; pt = 0 };
		if
		:: rt != 0 || rm != 0 ->
#ifndef BUG_NO_FLUSH
			flush_tlb(true, new_gen, i);
#endif
#ifndef BUG_TAKEN_FREED_AT_ONCE
			atomic { !rcu[THREAD] };
			atomic { !rcu[OTHERS] };
			atomic { !rcu[HOOK] };
#endif
			release(rt);
			release(rm)
		:: else
		fi
	od
}

/* pgrepl_upgrade_upper(), with mmap_lock held for writing; faults go on. */
proctype Worker()
{
	byte pm, rm;

end:	do
	:: atomic { !mmap_lock && pud != 0 && replica_pud == pud -> mmap_lock = true; pm = pud };
#ifdef EAGER
		atomic {			/* pgrepl_build_fill() */
			!ptl[pm];
			if
			:: ring[pm] == 0 -> allocate(rm); ring[pm] = rm
			:: skip
			fi;
			rm = 0
		};
		atomic {			/* pgrepl_build_link(), and what is below before the lock is given back */
			!page_table_lock;
			if
			:: ring[pm] != 0 ->
				replica_pud = ring[pm];
				whole[ring[pm]] = true;
				if
				:: slot[ring[pm]] == 0 -> slot[ring[pm]] = slot[pm]
				:: else
				fi
			:: else
			fi
		};
#else
		atomic {
			!page_table_lock;
			if
			:: replica_pud == pm -> replica_pud = 0
			:: else
			fi
		};
#endif
		atomic { pm = 0; mmap_lock = false }
	od
}

init
{
	atomic {
		run Thread(0); run Hardware(0);
#ifdef EAGER
		run Other();
#endif
		run Munmap();
		run Shrinker();
		run Worker()
	}
}
