/*
 * Replica roots: enable, disable, the switch to and from the process, the fallback to the primary root in atomic
 * contexts, exit. Below the root one replica table with one leaf; the primary always maps the page.
 *
 * The caller of enable and disable has a store buffer of one entry for `active`: that store and the read of
 * mm_cpumask after it are what x86 may exchange; the CPU that switches has a locked operation between its two.
 *
 * -DOPS=n          so many changes between enabled and disabled
 * -DOP_AGE         the kernel takes the leaf out of the replica now and then (aging), so that fills repeat
 * -DATOMIC         threads also access in atomic contexts (page faults disabled)
 * -DEXIT           the threads may exit; the roots die with pgd_free()
 */
#define NCPU 2
#ifndef OPS
#define OPS 2
#endif
#ifndef SWITCHERS
#define SWITCHERS 2
#endif
#define FINE_SWITCH
#define ROOTS_CHANGE
#include "claim.pml"

bool replicated;		/* context.pgrepl->active */
bool buffered;		/* ... and a store to it that is still in the store buffer of the caller */
bool buffered_value;
#define full_barrier()	!buffered
#define wanted_root(c)	(replicated -> REPLICA : PRIMARY)
bool alive[NCPU] = true;	/* the thread of CPU c */
#define may_run(c)	alive[c]

#define REPLICA_TABLE	1	/* what a paging-structure cache may point to */
#define PRIMARY_TABLE	2
byte psc[NCPU];
bool dangling[NCPU];	/* ghost: it points to a table that was freed since */
#define forget(c)	psc[c] = 0; dangling[c] = false

#include "cpu.pml"

bool slot;		/* the replica root's slot links to the replica table */
bool table;		/* the replica table exists, on the ring of its primary */
bool leaf;		/* its entry */
bool root_freed;
bool atomic_context[NCPU];
byte vma_readers;
bool vma_writer;
byte tries[NCPU];
byte ops;

/* The user half of a root that is freed, or the kernel half: any walk at all. */
inline check_root(c)
{
	claim(cpu[c].cr3 != REPLICA || !root_freed, "no CPU has a freed root loaded")
}

inline check_walk(c)
{
	claim(in_switch_window(c), "no CPU walks through a table after it was freed")
}

/* The next level for CPU c: cached, or read from the loaded root. */
#define next_table(c)	(psc[c] != 0 -> psc[c] : (cpu[c].cr3 == PRIMARY -> PRIMARY_TABLE : (slot -> REPLICA_TABLE : 0)))

/* One access of the thread on CPU c. In an atomic block. */
inline access(c)
{
	psc[c] = next_table(c);
	claim(!dangling[c], "no CPU walks through a table after it was freed");
	if
	:: psc[c] == PRIMARY_TABLE || (psc[c] == REPLICA_TABLE && leaf) ->
		tries[c] = 0;
		COVER_IF(atomic_context[c] && cpu[c].cr3 == PRIMARY && replicated, COVER_FALLBACK)
	:: else ->
		forget(c);			/* a fault drops what led to it */
		tries[c]++;
		claim(tries[c] <= 3, "no endless fault loop");
		if
		:: atomic_context[c] ->
			claim(cpu[c].cr3 == REPLICA, "no -EFAULT for what the primary permits");
			goto fallback
		:: else -> goto fault
		fi
	fi
}

/* A thread of mm that runs on CPU c whenever CPU c runs mm. */
proctype Thread(byte c)
{
	bool filling;

end:	do
	:: atomic { running(c) -> access(c) }
#ifdef ATOMIC
	:: atomic { running(c) && !atomic_context[c] -> atomic_context[c] = true; tries[c] = 0 }	/* pagefault_disable() */
	:: atomic { running(c) && atomic_context[c] ->	/* back to user mode: load the root we want */
		atomic_context[c] = false;
		tries[c] = 0;
		load_root(c, wanted_root(c))
	   }
#endif
#ifdef EXIT
	:: atomic { running(c) ->		/* do_exit(): the CPU goes on with a kernel thread, lazily */
		alive[c] = false;
		cpu[c].is_lazy = true;
		break
	   }
#endif
	od;
	goto gone;

fallback:
	/* Between the fault and the load the hardware may walk on. */
	atomic { running(c) ->
		if
		:: cpu[c].cr3 == REPLICA -> load_root(c, PRIMARY)
		:: else				/* an interrupt was faster */
		fi
	};
	goto end;

fault:
#ifdef BUG_TEST_BEFORE_VMA_LOCK
	atomic { running(c) -> filling = (cpu[c].cr3 == REPLICA) };
#endif
	atomic { running(c) && !vma_writer -> vma_readers++ };
#ifndef BUG_TEST_BEFORE_VMA_LOCK
	atomic { running(c) -> filling = (cpu[c].cr3 == REPLICA) };
#endif
	if
	:: filling ->
		atomic { running(c) -> table = true; leaf = true };	/* under the lock of the PTE table */
		atomic { running(c) -> slot = true };			/* under page_table_lock */
	:: else					/* handle_mm_fault() finds nothing to do */
	fi;
	atomic { running(c) -> vma_readers--; filling = false };
	goto end;
gone:	skip
}

/* The scheduler of CPU c. */
proctype Scheduler(byte c)
{
	byte next_gen, root;

end:	do
	:: atomic { running(c) -> cpu[c].is_lazy = true }
	:: leave_lazy(c)
	:: switch_from_mm(c); tries[c] = 0
	:: switch_to_mm(c, next_gen, root)
	od
}

proctype Hardware(byte c)
{
end:	do
	:: atomic { cpu[c].cr3 != NO_ROOT && psc[c] == 0 && next_table(c) != 0 -> psc[c] = next_table(c) }
	:: atomic { cpu[c].cr3 != NO_ROOT && psc[c] != 0 -> forget(c) }	/* evicted */
	:: atomic { cpu[c].cr3 != NO_ROOT && dangling[c] -> COVER(COVER_WALK_IN_WINDOW) check_walk(c) }
	:: atomic { cpu[c].cr3 == REPLICA -> check_root(c) }
	:: atomic { cpu[c].ipi != NO_IPI && !cpu[c].irqs_off -> handle_ipi(c) }
	od
}

proctype StoreBuffer()
{
end:	do
	:: atomic { buffered -> replicated = buffered_value; buffered = false }
	od
}

inline set_replicated(value)
{
	atomic { buffered = true; buffered_value = value };
#ifndef BUG_NO_BARRIER
	full_barrier()
#endif
}

/* on_each_cpu_mask(mm_cpumask(mm), reload CR3), and wait */
inline reload_all()
{
#ifndef BUG_NO_RELOAD
	i = 0;
	do
	:: i < NCPU -> atomic {
		cpu[i].ipi == NO_IPI;
		if
		:: cpu[i].in_cpumask -> send_ipi(i, IPI_RELOAD)
		:: else
		fi;
		i++ }
	:: else -> break
	od;
	wait_for_ipis(i);
#endif
	skip
}

/* No CPU has the other root loaded. A CPU in an atomic context may be on the primary root at any time. */
#define settled(c)	(cpu[c].loaded_mm != MM || cpu[c].cr3 == (replicated -> REPLICA : PRIMARY) || \
			 (atomic_context[c] && cpu[c].cr3 == PRIMARY))

inline all_settled()
{
	claim(settled(0) && settled(1), "after enable or disable no CPU has the other root loaded")
}

#ifdef BUG_ROOT_EMPTIED_LATE
#define empty_before_flush	skip
#define empty_after_free	slot = false
#else
#define empty_before_flush	slot = false
#define empty_after_free	skip
#endif

inline free_table()
{
	atomic {
		if
		:: table ->
			claim(!slot, "nothing in memory leads to a page that is freed");
			table = false;
			leaf = false;
			COVER(COVER_TABLE_FREED)
			if
			:: psc[0] == REPLICA_TABLE -> dangling[0] = true
			:: else
			fi;
			if
			:: psc[1] == REPLICA_TABLE -> dangling[1] = true
			:: else
			fi
		:: else
		fi
	}
}

/* prctl() by somebody, with the mmap lock and all VMAs write-locked. */
proctype Prctl()
{
	byte new_gen, i;

end:	do
	:: atomic { ops < OPS && vma_readers == 0 && !vma_writer && !buffered -> ops++; vma_writer = true };
		if
		:: !replicated ->
			claim(!slot && !table, "roots in use again start empty: nothing was filled while disabled");
			root_freed = false;
			set_replicated(true);
			reload_all();
			all_settled()
		:: replicated ->
			set_replicated(false);
			reload_all();
			empty_before_flush;
			flush_tlb(true, new_gen, i);
			all_settled();
			free_table();
			empty_after_free;
			claim(!slot, "a root out of use is empty");
#ifdef BUG_ROOT_FREED_AT_DISABLE
			root_freed = true
#endif
		fi;
		atomic { vma_writer = false; tries[0] = 0; tries[1] = 0 }
#ifdef OP_AGE
	:: atomic { leaf -> leaf = false; tries[0] = 0; tries[1] = 0 }	/* ptep_test_and_clear_young() and its hook */
#endif
	od
}

#ifdef EXIT
proctype Exit()
{
	byte new_gen, i;

	!alive[0] && !alive[1];			/* mm_users == 0: exit_mmap(), free_pgtables() */
	atomic { !vma_writer -> vma_writer = true };
	slot = false;
	flush_tlb(true, new_gen, i);
	free_table();
#ifdef BUG_ROOT_FREED_AT_EXIT
	root_freed = true;
#else
	atomic {				/* mm_count == 0: the CPUs that borrowed mm have given it back, after CR3 */
		cpu[0].loaded_mm == OTHER && cpu[1].loaded_mm == OTHER ->
		root_freed = true;
		COVER(COVER_PGD_FREE)
	};
#endif
	claim(cpu[0].cr3 != REPLICA && cpu[1].cr3 != REPLICA, "no CPU has a freed root loaded")
}
#endif

init
{
	atomic {
		run Thread(0); run Scheduler(0); run Hardware(0);
		run Thread(1); run Scheduler(1); run Hardware(1);
		run StoreBuffer();
#ifdef EXIT
		run Exit();
#endif
		run Prctl()
	}
}
