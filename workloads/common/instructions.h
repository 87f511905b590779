/*
 * Instructions, on a machine that counts them (`numalab boot --count-instructions`, numalab/machine/instructions.py).
 *
 * The time-stamp counter of such a machine goes up by one with each instruction that any of its CPUs executes, user
 * and kernel alike; halted CPUs execute none, a repeated string instruction counts once for each repetition. Only
 * while all CPUs are halted it follows the clock.
 */
#ifndef NUMALAB_INSTRUCTIONS_H
#define NUMALAB_INSTRUCTIONS_H

#include <stdint.h>

/* Instructions the whole machine has executed so far. */
static inline uint64_t instructions(void)
{
#ifdef __x86_64__
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
#else
	return 0;
#endif
}

/* Fail unless instructions() counts instructions: loops of known lengths must differ by exactly their difference. */
void instructions_check(void);

#endif
