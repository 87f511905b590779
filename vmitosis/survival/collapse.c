/*
 * collapse PID: MADV_COLLAPSE for the largest writable mapping of another process, in steps of 2 MiB.
 *
 * Prints "STEPS steps, DONE done"; a step that the kernel refuses (nothing is mapped there, a page is pinned) is not done.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#define STEP (2ul << 20)

int main(int argc, char **argv)
{
	uint64_t low, high, from = 0, to = 0;
	unsigned long steps = 0, done = 0;
	char path[64], line[512], rights[8];
	int pidfd;
	FILE *maps;

	if (argc != 2)
		return 2;
	snprintf(path, sizeof(path), "/proc/%s/maps", argv[1]);
	maps = fopen(path, "r");
	pidfd = syscall(SYS_pidfd_open, atoi(argv[1]), 0);
	if (!maps || pidfd < 0) {
		perror("collapse");
		return 1;
	}
	while (fgets(line, sizeof(line), maps))
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s", &low, &high, rights) == 3 && rights[1] == 'w' &&
		    high - low > to - from)
			from = low, to = high;
	for (from = (from + STEP - 1) & -STEP; from + STEP <= to; from += STEP) {
		struct iovec piece = { (void *)from, STEP };

		steps++;
		done += syscall(SYS_process_madvise, pidfd, &piece, 1ul, MADV_COLLAPSE, 0) == (long)STEP;
	}
	printf("%lu steps, %lu done\n", steps, done);
	return 0;
}
