#include "instructions.h"

#include "fail.h"

/* An interrupt may fall into one try (one in four milliseconds, at a billion instructions a second), not into all. */
#define TRIES 16

/* The fewest instructions a loop of `turns` turns, two instructions each, was seen to take. */
static uint64_t loop(uint64_t turns)
{
	uint64_t least = UINT64_MAX;

	for (int try = 0; try < TRIES; try++) {
		uint64_t left = turns, began = instructions(), took;

#ifdef __x86_64__
		__asm__ volatile("1: dec %0\n\tjnz 1b" : "+r"(left) : : "cc");
#endif
		took = instructions() - began;
		if (took < least)
			least = took;
	}
	return least;
}

void instructions_check(void)
{
	static const uint64_t turns[] = { 10, 1000, 30000, 300000 };
	uint64_t fixed = loop(1);

	/* A clock may agree by chance with one of them, not with four of such different lengths. */
	for (unsigned int i = 0; i < sizeof(turns) / sizeof(*turns); i++)
		if (loop(turns[i]) - fixed != 2 * (turns[i] - 1))
			fail("the time-stamp counter of this machine does not count instructions "
			     "(boot one that does: numalab boot --count-instructions)");
}
