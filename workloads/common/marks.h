/*
 * Marks: the workload tells the laboratory where it is, and waits until the laboratory has looked.
 *
 * With NUMALAB_MARK_FD=N in the environment, N is one end of a socket pair: mark("ready") writes "ready\n" and blocks
 * until it has read one byte, "\n". Snapshots and counters are taken in between. Without the variable nothing happens.
 */
#ifndef NUMALAB_MARKS_H
#define NUMALAB_MARKS_H

/* Announce `name` (no newline in it); returns when the laboratory has answered; fails when it is gone. */
void mark(const char *name);

#endif
