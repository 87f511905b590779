/*
 * PTE tables come and go: the slot of a PMD table in the primary and in the replica, the tables it points to, the
 * CPUs' paging-structure caches, and everybody who frees. Leaves are only present or not (shootdown.pml has them).
 * The PMD table, its replica and the roots stay (roots.pml has those).
 *
 * -DMIXED          CPU 1 runs on the primary root
 * -DPASS_THROUGH   the fill may write the primary's own table into the replica's slot
 * -DOP_MUNMAP      unmap, free_pgtables(), mmu_gather: flush with freed_tables, then free
 * -DOP_RETRACT     retract_page_tables(): no mmap lock, no VMA lock; free by call_rcu()
 * -DOP_MIGRATE     the PTE table moves to another node (M2), under the VMA lock for write
 * -DOPS=n          so many of them; -DSWITCHERS=n CPUs that switch between processes and go lazy
 */
#define NCPU 2
#ifndef OPS
#define OPS 2
#endif
#ifndef SWITCHERS
#define SWITCHERS 2
#endif
#ifndef TABLES
#define TABLES 7	/* pages for tables, 1 .. TABLES-1; 0 means none */
#endif
#include "claim.pml"

#ifdef MIXED
#define wanted_root(c)	((c) == 0 -> REPLICA : PRIMARY)
#else
#define wanted_root(c)	REPLICA
#endif

byte pmd;		/* slot of the primary's PMD table: a table of the primary */
byte replica_pmd;	/* the same slot in the replica: a replica table, or (pass-through) a table of the primary */
byte psc[NCPU];		/* paging-structure cache: the PTE table for our address, or nothing */
bool dangling[NCPU];	/* ghost: that table was freed since */
#define forget(c)	psc[c] = 0; dangling[c] = false

#include "cpu.pml"

bool used[TABLES];	/* allocated, or waiting to be freed */
bool leaf[TABLES];	/* the one entry we look at is present */
byte ring[TABLES];	/* the replica of this table of the primary (ptdesc.pt_repl) */
bool ptl[TABLES];	/* its lock */
bool pmd_lock;

bool mapped = true;	/* the VMA is there */
bool linked = true;	/* ... and known to the file's i_mmap */
bool i_mmap_lock;
bool folio_locked;	/* no fault can map the page */
byte vma_readers;	/* per-VMA lock */
bool rcu[NCPU];		/* inside rcu_read_lock() */
byte rcu_table, rcu_replica;	/* waiting in call_rcu() */
byte tries[NCPU];
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
	COVER_IF((dangling[0] && psc[0] == t) || (dangling[1] && psc[1] == t), COVER_REUSED_WHILE_CACHED);
	used[t] = true;
	leaf[t] = false;
	ring[t] = 0
}

/* The page goes back to the allocator: nothing in memory may lead there; whoever cached it holds a dangling pointer. */
inline release(t)
{
	atomic {
		if
		:: t != 0 ->
			claim(used[t] && pmd != t && replica_pmd != t, "nothing in memory leads to a page that is freed");
			used[t] = false;
			leaf[t] = false;
			ring[t] = 0;
			if
			:: psc[0] == t -> dangling[0] = true; COVER(COVER_DANGLING)
			:: else
			fi;
			if
			:: psc[1] == t -> dangling[1] = true
			:: else
			fi
		:: else
		fi
	}
}

#define slot(c)		(cpu[c].cr3 == PRIMARY -> pmd : replica_pmd)

/* A walk by CPU c reads a PTE table. */
inline check_walk(c)
{
	claim(!dangling[c] || in_switch_window(c), "no CPU walks through a table after it was freed")
}

/* CPU c, user mode. In an atomic block. */
inline access(c)
{
	if
	:: psc[c] == 0 -> psc[c] = slot(c)
	:: psc[c] != 0 -> skip
	fi;
	if
	:: psc[c] != 0 -> check_walk(c)
	:: else
	fi;
	if
	:: psc[c] != 0 && leaf[psc[c]] -> tries[c] = 0
	:: else ->
		forget(c);			/* a fault drops what led to it */
		tries[c]++;
		claim(tries[c] <= 3, "no endless fault loop");
		goto fault
	fi
}

proctype Thread(byte c)
{
	byte next_gen, root, t, r;

end:	do
	:: atomic { running(c) && mapped -> access(c) }
	:: atomic { c < SWITCHERS && running(c) -> cpu[c].is_lazy = true }
	:: leave_lazy(c)
	:: switch_from_mm(c)
	:: switch_to_mm(c, next_gen, root)
	od;

fault:	/* lock_vma_under_rcu() */
	if
#ifdef BUG_NO_VMA_LOCK
	:: mapped -> skip
#else
	:: atomic { mapped -> vma_readers++ }
#endif
	:: atomic { !mapped -> tries[c] = 0; goto end }		/* SIGSEGV */
	fi;

	/* handle_mm_fault() */
	if
	:: folio_locked -> tries[c] = 0; goto unlock_vma	/* VM_FAULT_RETRY */
	:: else
	fi;
	atomic {
		!pmd_lock;
		if
		:: pmd == 0 -> allocate(t); pmd = t; t = 0	/* none -> present: no hook */
		:: else
		fi
	};
	rcu[c] = true;				/* pte_offset_map_lock() */
	t = pmd;
	if
	:: t != 0 ->
		lock(ptl[t]);
		atomic {
			if
			:: pmd == t && !folio_locked -> leaf[t] = true
			:: else					/* pte_offset_map_lock(): look again */
			fi;
			ptl[t] = false;
			t = 0
		}
	:: else
	fi;
	rcu[c] = false;

	/* the fill, bottom up: the leaf, under the lock of the table */
	rcu[c] = true;				/* from here to the link: the table and its replica cannot go */
	t = pmd;
	if
	:: t == 0 -> goto unlock_rcu
	:: else
	fi;
	lock(ptl[t]);
	if
	:: atomic { pmd == t && leaf[t] ->
		if
#ifdef PASS_THROUGH
		:: ring[t] == 0 -> r = t
#endif
		:: ring[t] == 0 -> allocate(r); ring[t] = r
		:: ring[t] != 0 -> r = ring[t]
		fi;
		leaf[r] = true;
		ptl[t] = false
	   }
	:: atomic { else -> ptl[t] = false; COVER(COVER_CHANGED_BEFORE_FILL) goto unlock_rcu }
	fi;
#ifdef BUG_NO_RCU_OVER_LINK
	rcu[c] = false;
#endif
	/* ... then the link, under the lock of the PMD table */
	lock(pmd_lock);
#ifdef BUG_LINK_WITHOUT_REREAD
	replica_pmd = r;
#else
	if					/* not atomic: free_pte_range() clears the slot without the lock */
	:: pmd == t -> replica_pmd = r
	:: else -> COVER(COVER_LINK_REFUSED) skip
	fi;
#endif
	pmd_lock = false;
unlock_rcu:
	atomic { rcu[c] = false; t = 0; r = 0 };
unlock_vma:
#ifdef BUG_NO_VMA_LOCK
	skip;
#else
	vma_readers--;
#endif
	if
	:: atomic { running(c) && mapped -> access(c) }
	:: tries[c] = 0
	fi;
	goto end
}

/* Hardware of CPU c: it may fill its paging-structure cache and walk on from there whenever a root is loaded. */
proctype Hardware(byte c)
{
end:	do
	:: atomic { cpu[c].cr3 != NO_ROOT && psc[c] != slot(c) && slot(c) != 0 -> psc[c] = slot(c); dangling[c] = false }
	:: atomic { cpu[c].cr3 != NO_ROOT && dangling[c] -> COVER(COVER_WALK_IN_WINDOW) check_walk(c) }
	:: atomic { cpu[c].ipi != NO_IPI && !cpu[c].irqs_off -> handle_ipi(c) }
	od
}

inline no_tries()
{
	tries[0] = 0;
	tries[1] = 0
}

/* The leaf goes: under the lock of the table, with its hook. */
inline zap_leaf()
{
	t = pmd;
	if
	:: t != 0 ->
		lock(ptl[t]);
		atomic {
			if
			:: pmd == t ->
				leaf[t] = false;
				leaf[ring[t]] = false;	/* the hook; leaf[0] is nobody's */
				leaf[0] = false;
				no_tries()
			:: else
			fi;
			ptl[t] = false
		}
	:: else
	fi
}

#if defined(BUG_HOOK_AFTER_FLUSH)
#define hook_before_flush	skip
#define hook_after_flush	replica_pmd = 0
#else
#define hook_before_flush	replica_pmd = 0
#define hook_after_flush	skip
#endif
#ifdef BUG_FREED_TABLES_NOT_SET
#define freed_tables	false
#else
#define freed_tables	true
#endif

#ifdef OP_RETRACT
/* khugepaged, or MADV_COLLAPSE by another process: no mmap lock, no VMA lock. */
proctype Khugepaged()
{
	byte t, new_gen, i;

end:	do
	:: atomic { linked && !i_mmap_lock && ops < OPS -> ops++; i_mmap_lock = true; folio_locked = true };
		zap_leaf();			/* unmap_mapping_pages() of the small pages */
		lock(pmd_lock);
		t = pmd;
		if
		:: t != 0 ->
			lock(ptl[t]);
			pmd = 0;		/* pmdp_collapse_flush() */
			atomic { hook_before_flush; no_tries() };
			flush_tlb(freed_tables, new_gen, i);
			hook_after_flush;
			atomic { ptl[t] = false; pmd_lock = false };
			atomic {		/* pte_free_defer() */
				rcu_table == 0 && !ptl[t] ->
				rcu_table = t;
				rcu_replica = ring[t];
				ring[t] = 0
			}
		:: else -> pmd_lock = false
		fi;
		atomic { i_mmap_lock = false; folio_locked = false; t = 0 }
	od
}

#endif

#if defined(OP_MUNMAP) || defined(OP_MIGRATE)
/* Whoever holds the mmap lock for write. */
proctype MmapWriter()
{
	byte t, r, n, new_gen, i;

end:	do
	:: ops < OPS ->
		if
#ifdef OP_MUNMAP
		:: atomic {			/* vma_start_write(), detach; then vms_complete_munmap_vmas() */
				ops < OPS && vma_readers == 0 -> ops++; mapped = false; no_tries()
			};
			zap_leaf();
			atomic { !i_mmap_lock -> linked = false };	/* free_pgtables(): unlink_file_vma() */
			t = pmd;
			if
			:: t != 0 ->
				pmd = 0;		/* free_pte_range(): no lock */
				hook_before_flush;
				r = ring[t];
#ifdef BUG_REPLICA_FREED_AT_ONCE
				release(r);
				r = 0;
#endif
				flush_tlb(freed_tables, new_gen, i);
				hook_after_flush;
				release(r);
				release(t)
			:: else
			fi;
			atomic { mapped = true; linked = true }	/* the next mmap() */
#endif
#ifdef OP_MIGRATE
		:: atomic {			/* vma_start_write() */
				ops < OPS && vma_readers == 0 -> ops++; mapped = false; no_tries()
			};
			lock(pmd_lock);
			t = pmd;
			if
			:: t != 0 ->
				lock(ptl[t]);
				pmd = 0;		/* pmdp_collapse_flush() */
				atomic { hook_before_flush; no_tries() };
				flush_tlb(freed_tables, new_gen, i);
				hook_after_flush;
				atomic {
					allocate(n);
					leaf[n] = leaf[t];
					leaf[t] = false
				};
				pmd = n;		/* pmd_populate() */
				atomic { ptl[t] = false; pmd_lock = false };
				atomic {
					rcu_table == 0 && !ptl[t] ->
					rcu_table = t;
					rcu_replica = ring[t];
					ring[t] = 0;
					n = 0
				}
			:: else -> pmd_lock = false
			fi;
			mapped = true
#endif
		fi;
		atomic { t = 0; r = 0 }
	od
}

#endif

/* call_rcu(): every CPU has been seen outside a read-side section; interrupts off is one. */
proctype Rcu()
{
end:	do
	:: rcu_table != 0 ->
		COVER_IF(rcu[0] || rcu[1], COVER_RCU_WAITS);
		atomic { !rcu[0] && !cpu[0].irqs_off };
		atomic { !rcu[1] && !cpu[1].irqs_off };
		release(rcu_replica);
		release(rcu_table);
		atomic { rcu_table = 0; rcu_replica = 0 }
	od
}

init
{
	atomic {
		run Thread(0); run Hardware(0);
		run Thread(1); run Hardware(1);
#if defined(OP_RETRACT) || defined(OP_MIGRATE)
		run Rcu();
#endif
#ifdef OP_RETRACT
		run Khugepaged();
#endif
#if defined(OP_MUNMAP) || defined(OP_MIGRATE)
		run MmapWriter();
#endif
		skip
	}
}
