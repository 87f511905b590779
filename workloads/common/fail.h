/*
 * How a workload says that something is wrong.
 *
 * Exit status of every workload: 0 ok; 1 the run failed (wrong result, no memory, host gone); 2 usage.
 */
#ifndef NUMALAB_FAIL_H
#define NUMALAB_FAIL_H

#define EXIT_FAILED 1
#define EXIT_USAGE 2

/* The name messages begin with; set by options_parse(). */
extern const char *program_name;

/* Print "NAME: message" and how to get help on stderr; exit with EXIT_USAGE. */
void usage_error(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* Print "NAME: message" on stderr; exit with EXIT_FAILED. */
void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

#endif
