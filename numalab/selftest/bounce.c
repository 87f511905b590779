/*
 * bounce [--pin] PROGRAM ARGUMENT...: run a program, and move each of its threads to another CPU every millisecond; or,
 * with --pin, keep each on the one CPU that its number says.
 *
 * Threads of its children are moved, too. The exit status is the program's; a signal that kills it kills this as well.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int cpus;

static void move(const char *path, unsigned int tick)
{
	DIR *tasks = opendir(path);
	struct dirent *entry;

	while (tasks && (entry = readdir(tasks))) {
		int task = atoi(entry->d_name);
		cpu_set_t set;

		if (!task)
			continue;
		CPU_ZERO(&set);
		CPU_SET((task + tick) % cpus, &set);
		sched_setaffinity(task, sizeof(set), &set); /* it may have ended */
	}
	if (tasks)
		closedir(tasks);
}

/* The process and those below it. */
static void move_all(int pid, unsigned int tick, int depth)
{
	char path[64];
	FILE *children;
	int child;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	move(path, tick);
	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", pid, pid);
	children = depth < 8 ? fopen(path, "r") : NULL;
	while (children && fscanf(children, "%d", &child) == 1)
		move_all(child, tick, depth + 1);
	if (children)
		fclose(children);
}

int main(int argc, char **argv)
{
	const struct timespec millisecond = { .tv_nsec = 1000000 };
	unsigned int tick = 0;
	int status, pid, pin = argc > 1 && !strcmp(argv[1], "--pin");

	argv += pin;
	argc -= pin;
	if (argc < 2)
		return 2;
	cpus = sysconf(_SC_NPROCESSORS_ONLN);
	pid = fork();
	if (pid < 0) {
		perror("bounce: fork");
		return 2;
	}
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execvp(argv[1], argv + 1);
		perror(argv[1]);
		_exit(127);
	}
	while (!waitpid(pid, &status, WNOHANG)) {
		move_all(pid, tick, 0);
		tick += !pin;
		nanosleep(&millisecond, NULL);
	}
	if (WIFSIGNALED(status)) {
		signal(WTERMSIG(status), SIG_DFL);
		raise(WTERMSIG(status));
	}
	return WEXITSTATUS(status);
}
