/*
 * keeper MIB SAME_MIB THREADS STATUS: memory that is checked and changed all the time.
 *
 * MIB MiB of pages whose every word tells page, place and generation; the generations are kept elsewhere, so that a page
 * that goes back to an older content is noticed, too. SAME_MIB MiB of pages of one content, for somebody to merge; one of
 * them at a time is given another content, and the common one again. Each of the THREADS threads has a slice of both,
 * and a CPU as far as there are some.
 *
 * The file STATUS holds "checked N changed N rounds N wrong N state running", rewritten a few times a second. SIGTERM:
 * everything is checked once more, the state is "done", exit status 1 when anything was wrong. "live ADDRESS" on the
 * standard output says where the pages are that change.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define WORDS (PAGE / 8)
/* Pages that a thread does before it lets others run: an emulated CPU has the VMM's threads to run, too. */
#define BURST 64
#define PAUSE_US 2000

static uint64_t *live, *same;
static size_t live_pages, same_pages;
static uint32_t *generation;
static int threads, cpus;
static atomic_ulong checked, changed, wrong;
static unsigned long rounds_of[64];
static volatile sig_atomic_t ending;

static uint64_t word_of(size_t page, uint32_t gen, int word)
{
	uint64_t x = ((uint64_t)page << 32 | gen) * 0x9E3779B97F4A7C15u + (uint64_t)word * 0xD1B54A32D192ED03u;

	return x ^ x >> 29;
}

static void fill(size_t page, uint32_t gen)
{
	for (int i = 0; i < WORDS; i++)
		live[page * WORDS + i] = word_of(page, gen, i);
	generation[page] = gen;
}

static void complain(const char *what, size_t page, int word, uint64_t is, uint64_t should)
{
	if (atomic_fetch_add(&wrong, 1) < 20)
		fprintf(stderr, "%s page %zu word %d: %016lx, not %016lx\n", what, page, word, is, should);
}

static void check_live(size_t page)
{
	for (int i = 0; i < WORDS; i++) {
		uint64_t is = live[page * WORDS + i], should = word_of(page, generation[page], i);

		if (is != should) {
			complain("live", page, i, is, should);
			break;
		}
	}
	atomic_fetch_add(&checked, 1);
}

static void check_same(size_t page)
{
	for (int i = 0; i < WORDS; i++) {
		uint64_t is = same[page * WORDS + i], should = word_of(0, 0, i);

		if (is != should) {
			complain("same", page, i, is, should);
			break;
		}
	}
	atomic_fetch_add(&checked, 1);
}

static void fill_same(size_t page, uint64_t other)
{
	for (int i = 0; i < WORDS; i++)
		same[page * WORDS + i] = word_of(0, 0, i) ^ other;
}

static void *work(void *arg)
{
	size_t me = (size_t)arg, from = live_pages * me / threads, to = live_pages * (me + 1) / threads;
	size_t same_from = same_pages * me / threads, same_to = same_pages * (me + 1) / threads, burst = 0;
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(me % cpus, &set);
	sched_setaffinity(0, sizeof(set), &set);
	while (!ending) {
		unsigned long round = rounds_of[me];

		for (size_t page = from; page < to && !ending; page++) {
			check_live(page);
			/* A third of the pages is written in each round: others are only read. */
			if (page % 3 == round % 3) {
				fill(page, generation[page] + 1);
				atomic_fetch_add(&changed, 1);
			}
			if (++burst % BURST == 0)
				usleep(PAUSE_US);
		}
		for (size_t page = same_from; page < same_to && !ending; page++) {
			check_same(page);
			if (page % 97 == round % 97) {
				fill_same(page, round + 1);
				fill_same(page, 0);
			}
			if (++burst % BURST == 0)
				usleep(PAUSE_US);
		}
		if (!ending)
			rounds_of[me]++;
	}
	return NULL;
}

static void say(const char *path, const char *state)
{
	unsigned long rounds = ~0ul;
	char name[256];
	FILE *file;

	for (int i = 0; i < threads; i++)
		rounds = rounds_of[i] < rounds ? rounds_of[i] : rounds;
	snprintf(name, sizeof(name), "%s.new", path);
	file = fopen(name, "w");
	if (!file)
		return;
	fprintf(file, "checked %lu changed %lu rounds %lu wrong %lu state %s\n", checked, changed, rounds, wrong, state);
	if (!fclose(file))
		rename(name, path);
}

static void end(int signal)
{
	(void)signal;
	ending = 1;
}

static void *map(size_t size)
{
	void *at = mmap(NULL, size ? size : PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED) {
		perror("keeper: mmap");
		exit(2);
	}
	return at;
}

int main(int argc, char **argv)
{
	pthread_t thread[64];

	if (argc != 5)
		return 2;
	live_pages = strtoul(argv[1], NULL, 10) << 8;
	same_pages = strtoul(argv[2], NULL, 10) << 8;
	threads = atoi(argv[3]);
	if (threads < 1 || threads > 64)
		return 2;
	cpus = sysconf(_SC_NPROCESSORS_ONLN);
	live = map(live_pages * PAGE);
	same = map(same_pages * PAGE);
	generation = map(live_pages * sizeof(*generation));
	printf("live %p\n", (void *)live);
	fflush(stdout);
	for (size_t page = 0; page < live_pages; page++)
		fill(page, 1);
	for (size_t page = 0; page < same_pages; page++)
		fill_same(page, 0);
	signal(SIGTERM, end);
	for (size_t i = 0; i < (size_t)threads; i++)
		if (pthread_create(&thread[i], NULL, work, (void *)i))
			return 2;
	while (!ending) {
		say(argv[4], "running");
		usleep(300000);
	}
	for (int i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	for (size_t page = 0; page < live_pages; page++)
		check_live(page);
	for (size_t page = 0; page < same_pages; page++)
		check_same(page);
	say(argv[4], "done");
	return wrong != 0;
}
