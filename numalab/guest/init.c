/*
 * The first process of the guest: mounts what programs expect, loads the
 * modules it finds in /modules, then serves commands from the laboratory.
 *
 * One thread and one poll loop. It runs at a real-time priority so that a
 * machine full of spinning threads still has a heartbeat; children do not
 * inherit that (SCHED_RESET_ON_FORK).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "init.h"

static void complain(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fprintf(stderr, "numalab-init: ");
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
}

static const struct {
	const char *source, *target, *type, *data;
	int optional;
} mounts[] = {
	{ "proc", "/proc", "proc", NULL, 0 },
	{ "sysfs", "/sys", "sysfs", NULL, 0 },
	{ "devtmpfs", "/dev", "devtmpfs", NULL, 0 },
	{ "tmpfs", "/tmp", "tmpfs", NULL, 0 },
	{ "tmpfs", "/run", "tmpfs", NULL, 0 },
	{ "devpts", "/dev/pts", "devpts", "ptmxmode=0666", 1 },
	{ "tmpfs", "/dev/shm", "tmpfs", NULL, 1 },
	{ "debugfs", "/sys/kernel/debug", "debugfs", NULL, 1 },
	{ "tracefs", "/sys/kernel/tracing", "tracefs", NULL, 1 },
	{ "cgroup2", "/sys/fs/cgroup", "cgroup2", NULL, 1 },
};

static void mount_all(void)
{
	for (size_t i = 0; i < sizeof(mounts) / sizeof(mounts[0]); i++) {
		mkdir(mounts[i].target, 0755);
		if (mount(mounts[i].source, mounts[i].target, mounts[i].type, 0, mounts[i].data) &&
		    !mounts[i].optional)
			complain("mount %s: %s", mounts[i].target, strerror(errno));
	}
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

/* The laboratory numbers the modules so that each comes after those it needs. */
static void load_modules(void)
{
	struct dirent **names;
	int count = scandir("/modules", &names, NULL, by_name);

	for (int i = 0; i < count; i++) {
		char path[512];
		int fd;

		if (names[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/modules/%s", names[i]->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		/* EOPNOTSUPP: a module for processors of another make, e.g. kvm_intel on SVM. */
		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
			if (errno != EEXIST && errno != EOPNOTSUPP)
				complain("module %s: %s", path, strerror(errno));
		if (fd >= 0)
			close(fd);
	}
}

/* 9p shares: each word "numalab.9p=TAG:/where" of the kernel's command line is one, read-only. */
static void mount_shares(void)
{
	char line[4096], *save = NULL;
	int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, line, sizeof(line) - 1);

	if (fd >= 0)
		close(fd);
	if (got < 0)
		return;
	line[got] = 0;
	for (char *word = strtok_r(line, " \n", &save); word; word = strtok_r(NULL, " \n", &save)) {
		char *tag, *where;

		if (strncmp(word, "numalab.9p=", 11))
			continue;
		tag = word + 11;
		where = strchr(tag, ':');
		if (!where)
			continue;
		*where++ = 0;
		mkdir(where, 0755);
		if (mount(tag, where, "9p", MS_RDONLY, "trans=virtio,version=9p2000.L,msize=262144,cache=loose"))
			complain("share %s: %s", where, strerror(errno));
	}
}

/* Find our port by its name: the number of a port depends on the machine. */
static int open_port(void)
{
	for (int tries = 0; tries < 3000; tries++) {
		DIR *dir = opendir("/sys/class/virtio-ports");
		struct dirent *entry;

		while (dir && (entry = readdir(dir))) {
			char path[512], name[64] = "";
			int fd;

			snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", entry->d_name);
			fd = open(path, O_RDONLY | O_CLOEXEC);
			if (fd < 0)
				continue;
			if (read(fd, name, sizeof(name) - 1) < 0)
				name[0] = 0;
			close(fd);
			name[strcspn(name, "\n")] = 0;
			if (strcmp(name, PORT_NAME))
				continue;
			snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
			closedir(dir);
			return open(path, O_RDWR | O_CLOEXEC);
		}
		if (dir)
			closedir(dir);
		usleep(10000);
	}
	return -1;
}

static void power_off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

static void reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		command_exited(pid, status);
}

static void serve(int port)
{
	struct itimerspec second = { { 1, 0 }, { 1, 0 } };
	int beat = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	sigset_t mask;
	int children;

	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	children = signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK);
	timerfd_settime(beat, 0, &second, NULL);
	send_number(0, GUEST_HELLO, PROTOCOL_VERSION);

	for (;;) {
		struct pollfd fds[3 + 4 * COMMANDS_MAX] = {
			{ port, POLLIN, 0 }, { beat, POLLIN, 0 }, { children, POLLIN, 0 }
		};
		int count = 3 + commands_poll(fds + 3);

		if (poll(fds, count, -1) < 0)
			continue;
		if (fds[1].revents & POLLIN) {
			uint64_t ticks;

			if (read(beat, &ticks, sizeof(ticks)) > 0)
				send_frame(0, GUEST_BEAT, "", 0);
		}
		commands_ready(fds + 3, count - 3);
		if (fds[2].revents & POLLIN) {
			struct signalfd_siginfo info;

			while (read(children, &info, sizeof(info)) > 0)
				;
			reap();
		}
		if (fds[0].revents & POLLIN && receive_frame() < 0)
			power_off();
		else if (fds[0].revents & POLLHUP && !(fds[0].revents & POLLIN))
			usleep(10000); /* the laboratory is not connected (yet) */
	}
}

int main(void)
{
	struct sched_param priority = { .sched_priority = 50 };
	int port;

	mount_all();
	load_modules();
	mount_shares();
	sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &priority);
	signal(SIGPIPE, SIG_IGN);
	setenv("PATH", "/bin:/usr/bin:/usr/sbin", 1);
	setenv("HOME", "/tmp", 1);
	setenv("TERM", "xterm", 0);
	port = open_port();
	if (port < 0) {
		complain("no virtio port %s", PORT_NAME);
		power_off();
	}
	set_port(port);
	serve(port);
}
