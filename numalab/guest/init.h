/* What the three parts of the first process know of each other. */
#ifndef NUMALAB_INIT_H
#define NUMALAB_INIT_H

#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "protocol.h"

#define COMMANDS_MAX 256

/* port.c */
void set_port(int fd);
void send_frame(uint32_t channel, char type, const void *payload, size_t length);
void send_number(uint32_t channel, char type, long number);
int receive_frame(void); /* reads one frame and acts on it; < 0 when asked to power off */

/* command.c */
void command_start(uint32_t channel, char *payload, size_t length);
void command_stdin(uint32_t channel, const char *payload, size_t length);
void command_kill(uint32_t channel, int signal);
void command_resume(uint32_t channel);
void command_exited(pid_t pid, int status);
int commands_poll(struct pollfd *fds); /* at most 4 * COMMANDS_MAX; returns how many */
void commands_ready(const struct pollfd *fds, int count);

#endif
