/*
 * Command line: tables of "--name VALUE" (or "--name=VALUE") options, with messages that name the nearest word.
 */
#ifndef NUMALAB_OPTIONS_H
#define NUMALAB_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum option_kind {
	OPTION_COUNT,	/* uint64_t; suffixes k, M, G are powers of 1000 */
	OPTION_SIZE,	/* uint64_t, bytes; suffixes K, M, G, T are powers of 1024 */
	OPTION_SECONDS, /* double */
	OPTION_CHOICE,	/* int, index into `words` */
	OPTION_SET,	/* uint64_t, bit set of indices into `words`; written as a list with commas */
	OPTION_TEXT,	/* const char *; the program checks it */
	OPTION_FLAG,	/* bool; takes no value */
};

struct option_row {
	const char *name; /* without the dashes; NULL ends a table */
	enum option_kind kind;
	void *value;	   /* holds the default before parsing */
	const char *words; /* "one|two" for CHOICE and SET; what to write in its place, for help, else */
	const char *help;
	uint64_t least;	   /* COUNT and SIZE */
	uint64_t most;	   /* 0: no limit */
	bool given;	   /* set by options_parse() */
};

/*
 * Parse argv by the rows of both tables. Prints help and exits 0 on --help; any mistake is a usage_error().
 * `program` is the name in messages, `summary` the first line of the help.
 */
void options_parse(int argc, char **argv, const char *program, const char *summary, struct option_row *own,
		   struct option_row *common);

/* Call `visit` for each number of a list such as "0-3,8"; `what` names the option in messages. */
typedef void (*list_visitor)(uint64_t number, void *context);
void list_parse(const char *what, const char *text, list_visitor visit, void *context);

#endif
