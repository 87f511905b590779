/*
 * faults MIB MODE CPU...: what second-level faults cost, counted by a virtual machine of one vCPU per CPU named.
 *
 * The guest is a few instructions of 32-bit code without paging, so that all that happens is the second level's doing.
 * Its memory is there before (4K pages), so that a fault finds its page at once. One vCPU after the other, on its own
 * CPU, touches each of MIB MiB twice: "first" and "again". Then each does 10,000 CPUID, exits that the kernel handles.
 *
 * MODE is -1 (leave it to the kernel), or KVM_CAP_X86_NUMA_MMU's: 0 off, 1 local, 2 replicate.
 *
 * Prints lines "phase NAME vcpu N cpu N ticks N faults N entries N", ticks of the time-stamp counter and changes of
 * KVM's statistics pf_fixed and pages_4k, then lines "tables ..." as debugfs has them, where it has.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <glob.h>
#include <linux/kvm.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define CAP_X86_NUMA_MMU 1000
#define CODE 0x1000
#define FIRST (2u << 20) /* what is touched begins here */
#define EXITS 10000
#define VCPUS 16

static const uint8_t touch[] = {
	0x88, 0x06,			    /* 1: mov %al, (%esi) */
	0x81, 0xc6, 0x00, 0x10, 0x00, 0x00, /* add $4096, %esi */
	0x39, 0xfe,			    /* cmp %edi, %esi */
	0x72, 0xf4,			    /* jb 1b */
	0xf4,				    /* hlt */
};
static const uint8_t ask[] = {
	0x31, 0xc0, /* 1: xor %eax, %eax */
	0x0f, 0xa2, /* cpuid */
	0x4f,	    /* dec %edi */
	0x75, 0xf9, /* jnz 1b */
	0xf4,	    /* hlt */
};

static int vm, vcpus[VCPUS], cpus[VCPUS];
static struct kvm_run *runs[VCPUS];
static char directory[128];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int must(int result, const char *what)
{
	if (result < 0)
		die(what);
	return result;
}

static uint64_t ticks(void)
{
	uint32_t low, high;

	asm volatile("lfence; rdtsc; lfence" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

static long statistic(const char *name)
{
	char path[256];
	long value = -1;
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	file = fopen(path, "r");
	if (!file || fscanf(file, "%ld", &value) != 1)
		die(path);
	fclose(file);
	return value;
}

static void start_at(int vcpu, uint32_t ip, uint32_t from, uint32_t to)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = ip, .rsi = from, .rdi = to, .rflags = 2 };
	struct kvm_segment flat = { .limit = ~0u, .selector = 8, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1 };

	must(ioctl(vcpus[vcpu], KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cr0 |= 1;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat;
	flat.type = 11;
	sregs.cs = flat;
	must(ioctl(vcpus[vcpu], KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	must(ioctl(vcpus[vcpu], KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	must(sched_setaffinity(0, sizeof(set), &set), "sched_setaffinity");
	/* The hysteresis of a vCPU that has changed nodes. */
	usleep(100000);
}

static void phase(const char *name, int vcpu, uint32_t ip, uint32_t from, uint32_t to)
{
	long faults, entries;
	uint64_t begun, ended;

	start_at(vcpu, ip, from, to);
	faults = statistic("pf_fixed");
	entries = statistic("pages_4k");
	begun = ticks();
	must(ioctl(vcpus[vcpu], KVM_RUN, 0), "KVM_RUN");
	ended = ticks();
	if (runs[vcpu]->exit_reason != KVM_EXIT_HLT) {
		fprintf(stderr, "vCPU %d: exit for reason %u\n", vcpu, runs[vcpu]->exit_reason);
		exit(1);
	}
	printf("phase %s vcpu %d cpu %d ticks %lu faults %ld entries %ld\n", name, vcpu, cpus[vcpu], ended - begun,
	       statistic("pf_fixed") - faults, statistic("pages_4k") - entries);
}

static void show_tables(void)
{
	char path[256], line[256];
	FILE *file;

	snprintf(path, sizeof(path), "%s/numa_mmu_tables", directory);
	file = fopen(path, "r");
	while (file && fgets(line, sizeof(line), file))
		printf("tables %s", line);
	if (file && (ferror(file) || fclose(file)))
		die(path);
}

int main(int argc, char **argv)
{
	int kvm = must(open("/dev/kvm", O_RDWR), "/dev/kvm"), count = argc - 3, mode, size;
	uint32_t to;
	uint8_t *memory;
	glob_t found;

	if (count < 1 || count > VCPUS)
		return 2;
	to = FIRST + ((uint32_t)atoi(argv[1]) << 20);
	mode = atoi(argv[2]);
	vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	must(ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000), "KVM_SET_TSS_ADDR");
	if (mode >= 0) {
		struct kvm_enable_cap cap = { .cap = CAP_X86_NUMA_MMU, .args = { mode } };

		must(ioctl(vm, KVM_ENABLE_CAP, &cap), "KVM_ENABLE_CAP");
	}
	snprintf(directory, sizeof(directory), "/sys/kernel/debug/kvm/%d-*", getpid());
	if (glob(directory, 0, NULL, &found))
		die("glob");
	snprintf(directory, sizeof(directory), "%s", found.gl_pathv[0]);
	memory = mmap(NULL, to, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED || madvise(memory, to, MADV_NOHUGEPAGE))
		die("memory");
	pin(atoi(argv[3]));
	memset(memory, 0, to);
	memcpy(memory + CODE, touch, sizeof(touch));
	memcpy(memory + CODE + 256, ask, sizeof(ask));
	must(ioctl(vm, KVM_SET_USER_MEMORY_REGION,
		   &(struct kvm_userspace_memory_region){ .memory_size = to, .userspace_addr = (uintptr_t)memory }),
	     "KVM_SET_USER_MEMORY_REGION");
	size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	for (int vcpu = 0; vcpu < count; vcpu++) {
		cpus[vcpu] = atoi(argv[3 + vcpu]);
		pin(cpus[vcpu]);
		vcpus[vcpu] = must(ioctl(vm, KVM_CREATE_VCPU, vcpu), "KVM_CREATE_VCPU");
		runs[vcpu] = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpus[vcpu], 0);
		if (runs[vcpu] == MAP_FAILED)
			die("vCPU");
	}
	for (int vcpu = 0; vcpu < count; vcpu++) {
		pin(cpus[vcpu]);
		/* A root, and the page of the code, come with the first entry. */
		phase("enter", vcpu, CODE, CODE + 512, CODE + 513);
		phase("first", vcpu, CODE, FIRST, to);
		phase("again", vcpu, CODE, FIRST, to);
		phase("exits", vcpu, CODE + 256, 0, EXITS);
	}
	show_tables();
	return 0;
}
