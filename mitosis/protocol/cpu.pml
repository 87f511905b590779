/*
 * One CPU as arch/x86/mm/tlb.c (6.12.117) sees it: what it has loaded, when it is told to forget.
 *
 * There is one process under study, "mm". Everything else a CPU may run (init_mm, other processes) is OTHER:
 * while it runs, the translations of mm stay in the TLB under the PCID of mm, out of use but alive.
 * The ASID of mm is never recycled here: recycling only flushes more.
 *
 * A model includes this file after it has defined
 *   NCPU             number of CPUs that run threads of mm
 *   SWITCHERS        so many of them switch between processes and go lazy; the others stay with mm
 *   forget(c)        statement: CPU c drops what it has cached for the PCID of mm
 *   wanted_root(c)   expression: PRIMARY or REPLICA, the root CPU c would load now
 *   ROOTS_CHANGE     if that can change
 */
#ifndef may_run
#define may_run(c)	true	/* there is a thread of mm for CPU c */
#endif
#ifndef full_barrier
#define full_barrier()	skip	/* what a store buffer does at a locked operation */
#endif

#define OTHER		0	/* values of loaded_mm */
#define MM		1
#define SWITCHING	2

#define NO_ROOT		0	/* values of cr3: a root of somebody else */
#define PRIMARY		1
#define REPLICA		2	/* the replica root of this CPU's domain */

#define NO_IPI		0
#define IPI_FLUSH	1	/* flush_tlb_func() */
#define IPI_RELOAD	2	/* the reload of CR3 by enable and disable */

typedef Cpu {
	byte loaded_mm;		/* cpu_tlbstate.loaded_mm */
	byte cr3;
	byte asid_root;		/* the root this ASID was used with last */
	byte tlb_gen;		/* cpu_tlbstate.ctxs[asid of mm].tlb_gen */
	byte ipi;
	byte ipi_gen;		/* flush_tlb_info.new_tlb_gen; 0: TLB_GENERATION_INVALID */
	bool is_lazy;
	bool in_cpumask;	/* mm_cpumask(mm) */
	bool irqs_off;		/* only inside switch_mm_irqs_off() */
}

Cpu cpu[NCPU];
byte mm_tlb_gen = 1;		/* mm->context.tlb_gen */

/* A thread of mm runs on c: user mode, or the kernel on its behalf with interrupts on. */
#define running(c)	(cpu[c].loaded_mm == MM && !cpu[c].is_lazy && !cpu[c].irqs_off)

/*
 * A speculative walk of a table that was freed is excused between the clearing of the CPU's bit and the write
 * of CR3: Linux itself has that window (kernel-review.md, finding 6), no use can follow (interrupts are off, no
 * user access) and the translation dies by tlb_gen when the CPU comes back. Roots are not excused.
 */
#define in_switch_window(c)	(cpu[c].loaded_mm == SWITCHING && !cpu[c].in_cpumask)

/*
 * switch_mm_irqs_off(), in steps as coarse as its neighbours allow: setting or clearing the bit in mm_cpumask is
 * a full barrier and tlb_gen is read at once after it, so no flush can tell the two apart (one that comes between
 * them finds the bit and raises a tlb_gen that is read). The write of CR3 comes later: there the CPU still runs
 * on the old root. -DFINE_SWITCH takes every read and write for itself.
 */
#ifdef FINE_SWITCH
#define step(statements)	statements
#else
#define step(statements)	atomic { statements }
#endif

/*
 * Write CR3, with the flush that the change of root needs. Replica tables may be emptier than the primary's, and
 * the paging-structure caches go by the PCID, not by the root: with CR3_NOFLUSH the CPU would go on through a
 * replica table, and fault on what the primary permits. The other way round nothing is missing, so nothing is
 * flushed. In an atomic block.
 */
inline load_root(c, root)
{
#if defined(ROOTS_CHANGE) && !defined(BUG_ROOT_CHANGE_NOFLUSH)
	if
	:: root == PRIMARY && cpu[c].asid_root == REPLICA -> forget(c)
	:: else
	fi;
#endif
	cpu[c].cr3 = root;
	cpu[c].asid_root = root
}

/* prev != next, next == mm */
inline switch_to_mm(c, next_gen, root)
{
	atomic {
		cpu[c].loaded_mm == OTHER && !cpu[c].irqs_off && may_run(c);
		cpu[c].irqs_off = true;
		cpu[c].loaded_mm = SWITCHING;
#ifdef BUG_ROOT_BEFORE_CPUMASK
		root = wanted_root(c);
	};
	step(cpu[c].in_cpumask = true; next_gen = mm_tlb_gen);
#else
#ifdef FINE_SWITCH
	};
	cpu[c].in_cpumask = true;
	next_gen = mm_tlb_gen;
	root = wanted_root(c);
#else
		cpu[c].in_cpumask = true;
		next_gen = mm_tlb_gen;
		root = wanted_root(c)
	};
#endif
#endif
	atomic {
		if				/* choose_new_asid() */
		:: cpu[c].tlb_gen < next_gen ->
			COVER_IF(cpu[c].tlb_gen != 0, COVER_INACTIVE_PCID);
			forget(c);
			cpu[c].tlb_gen = next_gen
		:: else
		fi;
		load_root(c, root);
		cpu[c].loaded_mm = MM;
		cpu[c].irqs_off = false;
		next_gen = 0;
		root = NO_ROOT;
	}
}

/* prev == mm, next something else */
inline switch_from_mm(c)
{
	atomic {
		c < SWITCHERS && cpu[c].loaded_mm == MM && !cpu[c].irqs_off;
		cpu[c].irqs_off = true;
		cpu[c].is_lazy = false;
		cpu[c].loaded_mm = SWITCHING;
		cpu[c].in_cpumask = false	/* from here on no flush reaches this CPU */
	};
	atomic {
		cpu[c].cr3 = NO_ROOT;
		cpu[c].loaded_mm = OTHER;
		cpu[c].irqs_off = false;
	}
}

/* prev == next == mm, was_lazy: flush if a flush passed this CPU by */
inline leave_lazy(c)
{
	atomic {
		may_run(c) && cpu[c].is_lazy && cpu[c].loaded_mm == MM && !cpu[c].irqs_off;
		cpu[c].is_lazy = false;
		if
		:: cpu[c].tlb_gen != mm_tlb_gen ->
			forget(c);
			cpu[c].tlb_gen = mm_tlb_gen;
			cpu[c].cr3 = wanted_root(c);
			cpu[c].asid_root = cpu[c].cr3;
			COVER(COVER_LAZY_FLUSH)
		:: else
		fi
	}
}

/* An interrupt: flush_tlb_func() or the reload of CR3. In an atomic block. */
inline handle_ipi(c)
{
	if
	:: cpu[c].ipi == IPI_FLUSH && cpu[c].loaded_mm == MM ->
		if
		:: cpu[c].is_lazy ->		/* "just switch to init_mm" */
			COVER(COVER_LAZY_IPI)
			cpu[c].is_lazy = false;
			cpu[c].in_cpumask = false;
			cpu[c].cr3 = NO_ROOT;
			cpu[c].loaded_mm = OTHER;
		:: !cpu[c].is_lazy && (cpu[c].ipi_gen == 0 || cpu[c].ipi_gen > cpu[c].tlb_gen) &&
		   cpu[c].tlb_gen != mm_tlb_gen ->
			forget(c);
			cpu[c].tlb_gen = mm_tlb_gen;
		:: else				/* up to date */
#ifdef BUG_NO_TLB_GEN
			-> forget(c)		/* the flush of this CPU itself still happens */
#endif
		fi
	:: cpu[c].ipi == IPI_RELOAD && cpu[c].loaded_mm == MM ->
		load_root(c, wanted_root(c))
	:: else					/* another mm by now */
	fi;
	cpu[c].ipi = NO_IPI;
	cpu[c].ipi_gen = 0;
}

/* should_flush_tlb(): lazy CPUs may be passed by unless tables were freed */
#define wants_flush(c, freed)	(cpu[c].in_cpumask && ((freed) || (!cpu[c].is_lazy && cpu[c].loaded_mm != OTHER)))

inline send_ipi(c, what)
{
	COVER_IF(cpu[c].irqs_off, COVER_IPI_WHILE_SWITCHING);
	cpu[c].ipi = what
}

/*
 * flush_tlb_mm_range(): a full barrier (the locked increment), then an IPI to each CPU that may need one, then
 * the wait. The initiator is a CPU of its own outside mm (kswapd is one): a flush of the initiator's own TLB is
 * an IPI that is handled at once.
 */
inline flush_tlb(freed, new_gen, i)
{
	full_barrier();
	atomic {
#ifndef BUG_NO_TLB_GEN
		mm_tlb_gen++;
#endif
		new_gen = mm_tlb_gen;
		i = 0;
	}
	do
	:: i < NCPU -> atomic {
		cpu[i].ipi == NO_IPI;
		if
		:: wants_flush(i, freed) ->
			send_ipi(i, IPI_FLUSH);
			cpu[i].ipi_gen = new_gen
		:: else
		fi;
		i++ }
	:: else -> break
	od;
	wait_for_ipis(i);
	new_gen = 0
}

inline wait_for_ipis(i)
{
	atomic {
		i = 0;
		do
		:: i < NCPU -> cpu[i].ipi == NO_IPI; i++
		:: else -> break
		od;
		i = 0
	}
}
