/* Frames on the virtio port, and file transfers, which need no state. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "init.h"

static int port;

void set_port(int fd)
{
	port = fd;
}

static int write_all(int fd, const char *from, size_t length)
{
	while (length) {
		ssize_t done = write(fd, from, length);

		if (done < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (done <= 0)
			return -1;
		from += done;
		length -= done;
	}
	return 0;
}

static int read_all(int fd, char *to, size_t length)
{
	while (length) {
		ssize_t done = read(fd, to, length);

		if (done < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (done < 0)
			return -1;
		if (done == 0) { /* the laboratory went away; wait for it to come back */
			usleep(10000);
			continue;
		}
		to += done;
		length -= done;
	}
	return 0;
}

static void put32(unsigned char *to, uint32_t value)
{
	for (int i = 0; i < 4; i++)
		to[i] = value >> (8 * i);
}

static uint32_t get32(const unsigned char *from)
{
	return from[0] | from[1] << 8 | from[2] << 16 | (uint32_t)from[3] << 24;
}

void send_frame(uint32_t channel, char type, const void *payload, size_t length)
{
	unsigned char header[FRAME_HEADER];

	put32(header, length);
	put32(header + 4, channel);
	header[8] = type;
	if (!write_all(port, (char *)header, sizeof(header)))
		write_all(port, payload, length);
}

void send_number(uint32_t channel, char type, long number)
{
	char text[32];

	send_frame(channel, type, text, snprintf(text, sizeof(text), "%ld", number));
}

static void get_file(uint32_t channel, const char *path)
{
	static char buffer[64 * 1024];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int error = fd < 0 ? errno : 0;

	while (!error) {
		ssize_t got = read(fd, buffer, sizeof(buffer));

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			error = errno;
		if (got <= 0)
			break;
		send_frame(channel, GUEST_DATA, buffer, got);
	}
	if (fd >= 0)
		close(fd);
	send_number(channel, GUEST_STATUS, error);
}

/* One write(2) for a whole payload: files of proc and sysfs take a value in one piece. */
static void put_file(uint32_t channel, const char *payload, size_t length, int append)
{
	const char *mode = payload + strlen(payload) + 1;
	const char *data = mode + strlen(mode) + 1;
	size_t rest = length - (data - payload);
	int flags = O_WRONLY | O_CLOEXEC | (append ? O_APPEND : O_TRUNC | O_CREAT);
	int fd = open(payload, flags, (mode_t)strtol(mode, NULL, 8));
	int error = fd < 0 ? errno : 0;

	while (!error && rest) {
		ssize_t done = write(fd, data, rest);

		if (done < 0 && errno != EINTR)
			error = errno;
		if (done > 0) {
			data += done;
			rest -= done;
		}
	}
	if (fd >= 0 && close(fd) && !error)
		error = errno;
	send_number(channel, GUEST_STATUS, error);
}

int receive_frame(void)
{
	static char payload[FRAME_MAX + 1];
	unsigned char header[FRAME_HEADER];
	uint32_t length, channel;

	if (read_all(port, (char *)header, sizeof(header)))
		return 0;
	length = get32(header);
	channel = get32(header + 4);
	if (length > FRAME_MAX || read_all(port, payload, length)) {
		fprintf(stderr, "numalab-init: a frame of %u bytes: the channel is out of step\n", length);
		return -1;
	}
	payload[length] = 0;
	switch (header[8]) {
	case HOST_RUN:
		command_start(channel, payload, length);
		break;
	case HOST_STDIN:
		command_stdin(channel, payload, length);
		break;
	case HOST_KILL:
		command_kill(channel, atoi(payload));
		break;
	case HOST_RESUME:
		command_resume(channel);
		break;
	case HOST_GET:
		get_file(channel, payload);
		break;
	case HOST_PUT:
	case HOST_APPEND:
		put_file(channel, payload, length, header[8] == HOST_APPEND);
		break;
	case HOST_OFF:
		return -1;
	}
	return 0;
}
