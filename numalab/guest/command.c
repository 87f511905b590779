/* Commands: start them, carry their input, output, marks and exit status. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "init.h"

#define ARGS_MAX 1024

struct command {
	pid_t pid; /* 0: the slot is free */
	uint32_t channel;
	int in, out, err, mark; /* our ends; -1 when closed */
	char *pending;          /* input the command has not read yet */
	size_t pending_length;
	int close_in; /* close `in` once `pending` is written */
};

static struct command commands[COMMANDS_MAX];

static struct command *find(uint32_t channel)
{
	for (int i = 0; i < COMMANDS_MAX; i++)
		if (commands[i].pid && commands[i].channel == channel)
			return &commands[i];
	return NULL;
}

static void shut(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void nonblocking(int fd)
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

/* The child's side; `failed` reports the errno of a failed exec. */
static void become(char **argv, char **env, const char *cwd, int in, int out, int err, int mark, int tty, int failed)
{
	char where[48];
	sigset_t none;
	int error;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	setsid();
	if (tty)
		ioctl(in, TIOCSCTTY, 0);
	dup2(in, 0);
	dup2(out, 1);
	dup2(err, 2);
	fcntl(mark, F_SETFD, 0);
	snprintf(where, sizeof(where), "%d", mark);
	setenv("NUMALAB_MARK_FD", where, 1);
	for (; *env; env++)
		putenv(*env);
	if (!chdir(cwd))
		execvp(argv[0], argv);
	error = errno;
	if (write(failed, &error, sizeof(error)) < 0)
		_exit(126);
	_exit(127);
}

static int open_terminal(int *master, int *slave)
{
	int unlock = 0, number;
	char name[32];

	*master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (*master < 0 || ioctl(*master, TIOCSPTLCK, &unlock) || ioctl(*master, TIOCGPTN, &number))
		return -1;
	snprintf(name, sizeof(name), "/dev/pts/%d", number);
	*slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
	return *slave < 0 ? -1 : 0;
}

/* Split the payload in place: flags, cwd, argc, argv..., env... */
static int split(char *payload, size_t length, char **flags, char **cwd, char **argv, char **env)
{
	char *end = payload + length, *words[ARGS_MAX];
	int count = 0, argc, i;

	for (char *word = payload; word < end && count < ARGS_MAX; word += strlen(word) + 1)
		words[count++] = word;
	if (count < 4)
		return -1;
	*flags = words[0];
	*cwd = words[1];
	argc = atoi(words[2]);
	if (argc < 1 || argc > count - 3)
		return -1;
	for (i = 0; i < argc; i++)
		argv[i] = words[3 + i];
	argv[argc] = NULL;
	for (i = 3 + argc; i < count; i++)
		*env++ = words[i];
	*env = NULL;
	return 0;
}

void command_start(uint32_t channel, char *payload, size_t length)
{
	static char *argv[ARGS_MAX + 1], *env[ARGS_MAX + 1];
	int in[2] = { -1, -1 }, out[2] = { -1, -1 }, err[2] = { -1, -1 }, mark[2] = { -1, -1 }, failed[2];
	struct command *command = NULL;
	char *flags, *cwd;
	int tty, error = 0;
	pid_t pid;

	for (int i = 0; i < COMMANDS_MAX && !command; i++)
		if (!commands[i].pid)
			command = &commands[i];
	if (!command || split(payload, length, &flags, &cwd, argv, env)) {
		send_number(channel, GUEST_STATUS, command ? EINVAL : EAGAIN);
		return;
	}
	tty = strchr(flags, 't') != NULL;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, mark) || pipe2(failed, O_CLOEXEC)) {
		error = errno;
	} else if (tty) {
		if (open_terminal(&in[1], &in[0]))
			error = errno;
		out[0] = fcntl(in[1], F_DUPFD_CLOEXEC, 0);
		out[1] = fcntl(in[0], F_DUPFD_CLOEXEC, 0);
		err[1] = fcntl(in[0], F_DUPFD_CLOEXEC, 0);
	} else if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC)) {
		error = errno;
	}
	if (error) {
		send_number(channel, GUEST_STATUS, error);
		return;
	}
	pid = fork();
	if (pid == 0)
		become(argv, env, cwd, in[0], out[1], err[1], mark[1], tty, failed[1]);
	close(in[0]);
	close(out[1]);
	close(err[1]);
	close(mark[1]);
	close(failed[1]);
	/* Blocks until exec closes the pipe or its errno comes: short either way. */
	if (pid < 0)
		error = errno;
	else if (read(failed[0], &error, sizeof(error)) != sizeof(error))
		error = 0;
	close(failed[0]);
	if (error) {
		if (pid > 0)
			waitpid(pid, NULL, 0);
		close(in[1]);
		close(out[0]);
		shut(&err[0]);
		close(mark[0]);
		send_number(channel, GUEST_STATUS, error);
		return;
	}
	*command = (struct command){ .pid = pid, .channel = channel, .in = in[1], .out = out[0],
				     .err = err[0], .mark = mark[0] };
	nonblocking(command->in);
	nonblocking(command->out);
	if (command->err >= 0)
		nonblocking(command->err);
	nonblocking(command->mark);
	send_number(channel, GUEST_STARTED, pid);
}

static void feed(struct command *command)
{
	while (command->in >= 0 && command->pending_length) {
		ssize_t done = write(command->in, command->pending, command->pending_length);

		if (done < 0 && errno == EAGAIN)
			return;
		if (done < 0) { /* it closed its input: not an error of ours */
			command->pending_length = 0;
			shut(&command->in);
			break;
		}
		command->pending_length -= done;
		memmove(command->pending, command->pending + done, command->pending_length);
	}
	if (command->close_in)
		shut(&command->in);
}

void command_stdin(uint32_t channel, const char *payload, size_t length)
{
	struct command *command = find(channel);
	char *larger;

	if (!command || command->in < 0)
		return;
	if (length) {
		larger = realloc(command->pending, command->pending_length + length);
		if (!larger)
			return;
		memcpy(larger + command->pending_length, payload, length);
		command->pending = larger;
		command->pending_length += length;
	} else {
		command->close_in = 1;
	}
	feed(command);
}

void command_kill(uint32_t channel, int signal)
{
	struct command *command = find(channel);

	if (command)
		kill(-command->pid, signal);
}

void command_resume(uint32_t channel)
{
	struct command *command = find(channel);

	if (command && command->mark >= 0 && write(command->mark, "\n", 1) < 0)
		shut(&command->mark);
}

/* Pass on what is there; returns 0 at the end of the stream. */
static int drain(struct command *command, int *fd, char type)
{
	static char buffer[64 * 1024];
	ssize_t got = read(*fd, buffer, sizeof(buffer));

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return 1;
	if (got <= 0) { /* a terminal says EIO once its last user is gone */
		shut(fd);
		return 0;
	}
	if (type == GUEST_MARK)
		got = strcspn(strndupa(buffer, got), "\n");
	send_frame(command->channel, type, buffer, got);
	return 1;
}

static void drain_all(struct command *command, int *fd, char type)
{
	int waiting = 0;

	while (*fd >= 0 && !ioctl(*fd, FIONREAD, &waiting) && waiting > 0)
		if (!drain(command, fd, type))
			break;
}

void command_exited(pid_t pid, int status)
{
	for (int i = 0; i < COMMANDS_MAX; i++) {
		struct command *command = &commands[i];

		if (command->pid != pid)
			continue;
		/* Grandchildren may hold the pipes open: take what is there, do not wait for the end. */
		drain_all(command, &command->out, GUEST_STDOUT);
		drain_all(command, &command->err, GUEST_STDERR);
		shut(&command->in);
		shut(&command->out);
		shut(&command->err);
		shut(&command->mark);
		free(command->pending);
		send_number(command->channel, GUEST_EXIT, status);
		*command = (struct command){ 0 };
		return;
	}
}

int commands_poll(struct pollfd *fds)
{
	int count = 0;

	for (int i = 0; i < COMMANDS_MAX; i++) {
		struct command *command = &commands[i];

		if (!command->pid)
			continue;
		if (command->out >= 0)
			fds[count++] = (struct pollfd){ command->out, POLLIN, 0 };
		if (command->err >= 0)
			fds[count++] = (struct pollfd){ command->err, POLLIN, 0 };
		if (command->mark >= 0)
			fds[count++] = (struct pollfd){ command->mark, POLLIN, 0 };
		if (command->in >= 0 && command->pending_length)
			fds[count++] = (struct pollfd){ command->in, POLLOUT, 0 };
	}
	return count;
}

void commands_ready(const struct pollfd *fds, int count)
{
	for (int n = 0; n < count; n++) {
		if (!fds[n].revents)
			continue;
		for (int i = 0; i < COMMANDS_MAX; i++) {
			struct command *command = &commands[i];

			if (!command->pid)
				continue;
			if (fds[n].fd == command->out)
				drain(command, &command->out, GUEST_STDOUT);
			else if (fds[n].fd == command->err)
				drain(command, &command->err, GUEST_STDERR);
			else if (fds[n].fd == command->mark)
				drain(command, &command->mark, GUEST_MARK);
			else if (fds[n].fd == command->in && fds[n].events & POLLOUT)
				feed(command);
			else
				continue;
			break;
		}
	}
}
