/*
 * One page of one process, its leaf entry in the primary and in the replicas, and everything that may use it:
 * CPUs that read and write it through the TLB or through a walk, the fill by a page fault, the hook of a
 * kernel change, the flush. Tables are not freed here (tables.pml).
 *
 * -DDOMAINS=1|2    both CPUs share a replica, or have one each
 * -DMIXED          CPU 1 has no replica: it runs on the primary root (no memory for its domain)
 * -DNATIVE         no replicas at all: Linux as it is
 * -DOPS=n          so many changes by the kernel, each chosen freely among -DOP_...
 * -DWRITES         accesses may be writes; with it -DOP_WRPROTECT and so on make sense
 * -DKERNELS=2      two CPUs of the kernel do the changes
 * -DSWITCHERS=n    so many of the CPUs switch between processes and go lazy
 */
#define NCPU 2
#ifndef DOMAINS
#define DOMAINS 1
#endif
#ifndef OPS
#define OPS 2
#endif
#ifndef KERNELS
#define KERNELS 1
#endif
#ifndef SWITCHERS
#define SWITCHERS 2
#endif
#include "claim.pml"

#if DOMAINS == 1
#define domain(c)	0
#else
#define domain(c)	(c)
#endif

#ifdef BUG_WRONG_DOMAIN
#define filled_domain(c)	0	/* where the CPU map says the CPU is, not what it has loaded */
#else
#define filled_domain(c)	domain(c)
#endif

#ifdef NATIVE
#define wanted_root(c)	PRIMARY
#elif defined(MIXED)
#define wanted_root(c)	((c) == 0 -> REPLICA : PRIMARY)
#else
#define wanted_root(c)	REPLICA
#endif

/* A leaf entry, and what the TLB keeps of one. */
#define P	1	/* present */
#define W	2	/* writable */
#define A	4	/* accessed */
#define D	8	/* dirty */
#define FRAME	16	/* which of the two page frames */
#define frame(v)	((v) / FRAME)
#define has(v, bits)	(((v) & (bits)) == (bits))

byte pte;		/* the primary's entry */
byte replica[DOMAINS];	/* the same slot in the replicas */
byte tlb[NCPU];		/* 0: nothing */
#define forget(c)	tlb[c] = 0

#include "cpu.pml"

byte ops;		/* changes by the kernel so far */
bool locked;		/* the lock of the page table */

/* Ghosts: what the promises of finished flushes add up to. */
bool live[2];		/* the frame belongs to this page */
bool may_write[2];	/* the frame may be written: no finished flush has forbidden it */
bool newer[2];		/* written since the kernel last took note of the D bit */
bool granted[KERNELS];	/* a fault gave write permission since this kernel CPU's change took it away */
byte tries[NCPU];	/* faults of one access without a change by the kernel in between */

/* What a replica may hold for the primary's entry v (INV-R). */
#ifdef BUG_W_WITHOUT_D
#define replica_leaf(v)	(has(v, P | A) -> (v) : 0)
#else
#define replica_leaf(v)	(has(v, P | A) -> ((v) & W && !((v) & D) -> (v) & ~W : (v)) : 0)
#endif

#define walked(c)	(cpu[c].cr3 == PRIMARY -> pte : replica[domain(c)])
#define permits(v, write)	(has(v, P) && (!(write) || has(v, W)))

/*
 * The hardware writes A or D into the table it walks. A replica gives it no reason to; where one does (a seeded
 * bug), the bit stays in the replica, where the kernel never looks.
 */
inline set_bits(c, bits)
{
	if
	:: cpu[c].cr3 == PRIMARY -> pte = pte | (bits)
	:: else -> replica[domain(c)] = replica[domain(c)] | (bits)
	fi
}

/* The TLB of CPU c answers; the access is done. In an atomic block. */
inline use(c, write)
{
	claim(live[frame(tlb[c])], "no CPU uses a page after the flush that promised its end");
#ifdef WRITES
	if
	:: write ->
		claim(may_write[frame(tlb[c])], "no CPU writes after the flush that promised the end of writing");
		newer[frame(tlb[c])] = true
	:: else
	fi
#endif
}

/* CPU c, user mode, one access: a hit, a walk, or a page fault. In an atomic block. */
inline access(c, write, ok)
{
	ok = false;
	if
	:: has(tlb[c], P) && (!write || has(tlb[c], W | D)) -> ok = true
	:: has(tlb[c], P) && write && !has(tlb[c], W) -> skip	/* #PF without a walk */
	:: permits(walked(c), write) ->		/* a miss (entries may be evicted at any time), or a first write */
		if
		:: write -> set_bits(c, A | D)
		:: else -> set_bits(c, A)
		fi;
		tlb[c] = walked(c);
		ok = true
	:: !permits(walked(c), write) -> skip
	fi;
	if
	:: ok -> use(c, write); ok = false; write = false; tries[c] = 0
	:: else ->
		tlb[c] = 0;			/* a fault drops the entry */
		tries[c]++;
		claim(tries[c] <= 4, "no endless fault loop");
		goto fault
	fi
}

inline rewrite_replicas()
{
#ifndef NATIVE
	if
	:: replica[0] != 0 -> replica[0] = replica_leaf(pte)
	:: else
	fi;
#if DOMAINS == 2
	if
	:: replica[1] != 0 -> replica[1] = replica_leaf(pte)
	:: else
	fi;
#endif
#endif
	skip
}

inline grant_write(v)
{
	may_write[frame(v)] = true;
	granted[0] = true;
#if KERNELS == 2
	granted[1] = true
#endif
}

/*
 * What generic code does for a missing page, or for a write to a read-only page it may reuse. In an atomic block:
 * besides the lock's holder only walkers see the entry, and they see it before or after its one change.
 */
inline handle_mm_fault(c, v)
{
	if
	:: !has(v, P) && live[0] && live[1] -> tries[c] = 0	/* no frame is free: wait for a flush */
	:: !has(v, P) && !(live[0] && live[1]) ->
		v = (live[0] -> FRAME | P | A : P | A);
		live[frame(v)] = true;
#ifdef WRITES
		newer[frame(v)] = false;
		if				/* read-only, or writable and clean (shared memory), or dirty */
		:: skip
		:: v = v | W; grant_write(v)
		:: v = v | W | D; grant_write(v)
		fi;
#endif
		pte = v				/* none -> present: no hook */
	:: has(v, P) && write && !has(v, W) ->	/* ptep_set_access_flags() */
		pte = pte | W | A | D;
		grant_write(v);
		rewrite_replicas()
	:: else
	fi
}

/*
 * The lock is held, v is the primary's entry and permits the access. In an atomic block: between the locked OR
 * into the primary and the store into the replica only walkers look, and neither change takes anything away.
 */
inline fill(c, v)
{
	v = v | (write -> A | D : A);
#ifndef BUG_STALE_READ
	pte = pte | v;				/* locked OR */
#endif
	if
	:: cpu[c].cr3 == REPLICA -> replica[filled_domain(c)] = replica_leaf(v)
	:: else
	fi
}

#ifdef BUG_STALE_READ
#define stale_read(v)		v = pte
#define read_under_lock(v)	skip
#else
#define stale_read(v)		skip
#define read_under_lock(v)	v = pte
#endif

/* A thread of mm on CPU c, and the scheduler of CPU c. */
proctype Thread(byte c)
{
	byte next_gen, root, v;
	bool write, ok;

end:	do
	:: atomic {
		running(c);
#ifdef WRITES
		if
		:: write = true
		:: skip
		fi;
#endif
		access(c, write, ok)
	   }
	:: atomic { c < SWITCHERS && running(c) -> cpu[c].is_lazy = true }	/* enter_lazy_tlb() */
	:: leave_lazy(c)
	:: switch_from_mm(c)
	:: switch_to_mm(c, next_gen, root)
	od;

fault:	/* do_user_addr_fault(): fill; else handle_mm_fault() and fill. Each under the lock. */
	stale_read(v);
	atomic {
		!locked;
		read_under_lock(v);
		if
		:: permits(v, write) -> fill(c, v); v = 0; goto again
		:: else
		fi;
		v = pte;
		handle_mm_fault(c, v);
		v = 0
	};
	/* other CPUs and interrupts may come in here */
	stale_read(v);
	atomic {
		!locked;
		read_under_lock(v);
		if
		:: permits(v, write) -> fill(c, v)
		:: else -> COVER(COVER_CHANGED_BEFORE_FILL) skip
		fi;
		v = 0
	};
again:	if
	:: atomic { running(c) -> access(c, write, ok) }
	:: atomic { write = false; tries[c] = 0 }	/* the thread turns to something else */
	fi;
	goto end
}

/* Hardware of CPU c: speculative walks, interrupts. */
proctype Hardware(byte c)
{
end:	do
	:: atomic {
		cpu[c].cr3 != NO_ROOT && has(walked(c), P) && walked(c) != tlb[c] ->
		set_bits(c, A);
		tlb[c] = walked(c);
		COVER_IF(!has(pte, P) || frame(pte) != frame(tlb[c]), COVER_OLD_VALUE)
	   }
	:: atomic { cpu[c].ipi != NO_IPI && !cpu[c].irqs_off -> handle_ipi(c) }
	od
}

/* The kernel's change of the primary under the lock: one atomic instruction. */
inline lock_and_change(v)
{
	atomic {
		!locked && has(pte, P) && ops < OPS;
		ops++;
		locked = true;
		old = pte;
		pte = v;
		granted[k] = false;
		tries[0] = 0;
		tries[1] = 0
	}
}

#ifdef BUG_HOOK_STOPS_EARLY
#define HOOKED_DOMAINS	1
#else
#define HOOKED_DOMAINS	DOMAINS
#endif

/*
 * The hook: the entry was present and was changed; its slot in each replica follows, one store after the other.
 * An empty slot is left alone, another gets what the primary allows now.
 */
inline hook()
{
#ifndef NATIVE
	i = 0;
	do
	:: atomic { i < HOOKED_DOMAINS && replica[i] == 0 -> i++ }
	:: atomic { i < HOOKED_DOMAINS && replica[i] != 0 -> value = replica_leaf(pte) };
		atomic {
			replica[i] = value;
			value = 0;
			i++;
			tries[0] = 0;
			tries[1] = 0;
			COVER(COVER_REWRITE)
		}
	:: atomic { i == HOOKED_DOMAINS -> i = 0; break }
	od
#endif
	skip
}

inline check_replica(d, quiet)
{
	claim(!(quiet) || replica[d] == 0 ||
	      (has(pte, P) && frame(pte) == frame(replica[d]) && (has(pte, W) || !has(replica[d], W))),
	      "after a flush no replica is more permissive than the primary");
	claim(!(quiet) || replica[d] == 0 || has(replica[d], A), "INV-R: a leaf of a replica is accessed");
	claim(!(quiet) || !has(replica[d], W) || has(pte, D),
	      "INV-R: a writable leaf of a replica is dirty in the primary")
}

/*
 * After a flush no replica is more permissive than the primary, and INV-R holds. Said of a moment in which
 * nobody else holds the lock.
 */
inline check_replicas(quiet)
{
	check_replica(0, quiet);
#if DOMAINS == 2
	check_replica(1, quiet)
#endif
}

/* After the flush: check and note what it promised. */
inline promise_gone(f)
{
	atomic {
		claim(!newer[f] || has(old, D), "no dirty bit lost");
		check_replicas(!locked);
		live[f] = false;
		may_write[f] = false;
		newer[f] = false
	}
}

inline promise_read_only(f)
{
	atomic {
		check_replicas(!locked);
		if
		:: !granted[k] -> may_write[f] = false
		:: else -> COVER(COVER_UPGRADED) skip
		fi
	}
}

/*
 * Where the stores of the hook stand. Delayed to arch_leave_lazy_mmu_mode() they stand where the caller leaves its
 * section. change_pte_range(), zap_pte_range(), move_ptes() and copy_pte_range() leave before flush and unlock; two
 * callers in 6.12 do not, and a delay to there is a bug:
 *   BUG_LAZY_MMU_FLUSH_INSIDE   migrate_vma_collect_pmd(): flush, leave, unlock
 *   BUG_LAZY_MMU_UNLOCK_INSIDE  pagemap_scan_pmd_entry(): flush, unlock, leave
 */
#define hook_in_section		hook()
#define hook_after_flush	skip
#define hook_before_unlock	skip
#define hook_after_unlock	skip
#if defined(BUG_HOOK_AFTER_FLUSH)
#undef hook_in_section
#define hook_in_section		skip
#undef hook_after_flush
#define hook_after_flush	hook()
#elif defined(BUG_HOOK_AFTER_UNLOCK) || defined(BUG_LAZY_MMU_UNLOCK_INSIDE)
#undef hook_in_section
#define hook_in_section		skip
#undef hook_after_unlock
#define hook_after_unlock	hook()
#elif defined(BUG_LAZY_MMU_FLUSH_INSIDE)
#undef hook_in_section
#define hook_in_section		skip
#undef hook_before_unlock
#define hook_before_unlock	hook()
#endif

/* The kernel on some other CPU: reclaim, munmap, fork, mprotect, write-back, aging. */
proctype Kernel(byte k)
{
	byte old, new_gen, value, i;
#ifdef OP_BATCH
	bool batch[NCPU];
#endif

end:	do
	:: ops < OPS && has(pte, P) ->
		if
#ifdef OP_UNMAP
		:: lock_and_change(0);		/* zap_pte_range(), try_to_unmap_one(): the flush comes after the unlock */
			hook_in_section;
			locked = false;
			hook_after_unlock;
			flush_tlb(false, new_gen, i);
			hook_after_flush;
			promise_gone(frame(old))
#endif
#ifdef OP_BATCH
		:: lock_and_change(0);		/* try_to_unmap_one() with TTU_BATCH_FLUSH, then arch_tlbbatch_flush() */
			hook_in_section;
			mm_tlb_gen++;		/* arch_tlbbatch_add_pending() */
			atomic {
				batch[0] = cpu[0].in_cpumask;
				batch[1] = cpu[1].in_cpumask;
				locked = false
			};
			atomic {
				do
				:: i < NCPU ->
					if
					:: batch[i] && !cpu[i].is_lazy -> cpu[i].ipi = IPI_FLUSH
					:: else
					fi;
					batch[i] = false;
					i++
				:: else -> break
				od
			};
			wait_for_ipis(i);
			promise_gone(frame(old))
#endif
#ifdef OP_WRPROTECT
		:: lock_and_change(pte & ~W);	/* fork, mprotect, userfaultfd: the flush after the unlock */
			hook_in_section;
			locked = false;
			hook_after_unlock;
			flush_tlb(true, new_gen, i);
			hook_after_flush;
			promise_read_only(frame(old))
#endif
#ifdef OP_SECTION
		:: lock_and_change(pte & ~W);	/* write protection with the flush inside the section and the lock */
			hook_in_section;
			flush_tlb(true, new_gen, i);
			hook_before_unlock;
			locked = false;
			hook_after_unlock;
			promise_read_only(frame(old))
#endif
#ifdef OP_CLEAN
		:: lock_and_change(0);		/* page_mkclean_one(): ptep_clear_flush(), then back without D, perhaps W */
			hook_in_section;
			flush_tlb(false, new_gen, i);
			hook_after_flush;
			atomic {
				claim(!newer[frame(old)] || has(old, D), "no dirty bit lost");
				check_replicas(true);
				newer[frame(old)] = false;
				may_write[frame(old)] = false;
				if
				:: pte = old & ~(D | W)
				:: has(old, W) -> pte = old & ~D; may_write[frame(old)] = true
				fi;
				locked = false
			}
#endif
#ifdef OP_AGE
		:: lock_and_change(pte & ~A);	/* ptep_test_and_clear_young(): no flush */
			hook_in_section;
			locked = false
#endif
		fi;
		old = 0
	od
}

init
{
	atomic {
		run Thread(0); run Hardware(0);
		run Thread(1); run Hardware(1);
#if KERNELS == 2
		run Kernel(1);
#endif
		run Kernel(0)
	}
}
