#include "marks.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fail.h"

#define VARIABLE "NUMALAB_MARK_FD"

/* The descriptor of the channel, or -1 without one. */
static int channel(void)
{
	static int fd = -2;
	const char *text;
	char *end;
	long number;

	if (fd != -2)
		return fd;
	text = getenv(VARIABLE);
	if (!text)
		return fd = -1;
	errno = 0;
	number = strtol(text, &end, 10);
	if (errno || end == text || *end || number < 0 || number > 1 << 20)
		fail("%s=%s in the environment is not a file descriptor", VARIABLE, text);
	/* A host that has gone away is an error with a message, not a death by SIGPIPE. */
	signal(SIGPIPE, SIG_IGN);
	return fd = (int)number;
}

void mark(const char *name)
{
	int fd = channel();
	char line[64], reply;
	size_t length, done = 0;
	ssize_t n;

	if (fd < 0)
		return;
	length = (size_t)snprintf(line, sizeof(line), "%s\n", name);
	if (length >= sizeof(line))
		fail("mark name '%s' is too long", name);
	fflush(stdout);
	while (done < length) {
		n = write(fd, line + done, length - done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			fail("mark '%s': cannot write to the host (descriptor %d): %s", name, fd, strerror(errno));
		done += (size_t)n;
	}
	do {
		n = read(fd, &reply, 1);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		fail("mark '%s': no answer from the host (descriptor %d): %s", name, fd, strerror(errno));
	if (n == 0)
		fail("mark '%s': the host closed the mark channel", name);
	if (reply != '\n')
		fail("mark '%s': the host answered with byte 0x%02x, not a newline", name, (unsigned char)reply);
}
