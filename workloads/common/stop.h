/*
 * Programs that run until SIGTERM or SIGINT, and then print their result.
 */
#ifndef NUMALAB_STOP_H
#define NUMALAB_STOP_H

#include <stdbool.h>

/* From here on, and in children, a signal at any moment ends the run with a result. */
void stop_by_signals(void);

/* Whether one has come. */
bool stop_signalled(void);

#endif
