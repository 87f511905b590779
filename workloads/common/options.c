#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "fail.h"

#define MAX_WORD 32
#define HELP_COLUMN 28

/* Edit distance of two words, at most MAX_WORD characters each. */
static unsigned int distance(const char *a, const char *b)
{
	size_t la = strnlen(a, MAX_WORD), lb = strnlen(b, MAX_WORD);
	unsigned int row[MAX_WORD + 1];

	for (size_t j = 0; j <= lb; j++)
		row[j] = (unsigned int)j;
	for (size_t i = 1; i <= la; i++) {
		unsigned int diagonal = row[0];

		row[0] = (unsigned int)i;
		for (size_t j = 1; j <= lb; j++) {
			unsigned int change = diagonal + (a[i - 1] != b[j - 1]);

			diagonal = row[j];
			if (row[j] + 1 < change)
				change = row[j] + 1;
			if (row[j - 1] + 1 < change)
				change = row[j - 1] + 1;
			row[j] = change;
		}
	}
	return row[lb];
}

/* Copy word number `index` of "one|two|three" into `word`; false when there are not as many. */
static bool nth_word(const char *words, int index, char word[static MAX_WORD + 1])
{
	size_t length;

	for (; index; index--) {
		words = strchr(words, '|');
		if (!words)
			return false;
		words++;
	}
	length = strcspn(words, "|");
	if (length > MAX_WORD)
		length = MAX_WORD;
	memcpy(word, words, length);
	word[length] = '\0';
	return true;
}

/* Index of `text` among `words`; a usage_error() with the nearest one when it is none of them. */
static int which_word(const struct option_row *row, const char *text)
{
	char word[MAX_WORD + 1], best[MAX_WORD + 1] = "";
	unsigned int nearest = 4;

	for (int i = 0; nth_word(row->words, i, word); i++) {
		unsigned int far = distance(text, word);

		if (!strcmp(text, word))
			return i;
		if (far < nearest && far < strlen(word)) {
			nearest = far;
			strcpy(best, word);
		}
	}
	if (*best)
		usage_error("--%s: '%s' is not one of %s (did you mean '%s'?)", row->name, text, row->words, best);
	usage_error("--%s: '%s' is not one of %s", row->name, text, row->words);
}

/* A decimal number with a suffix whose step is `step` (1000 or 1024); false when `text` is no such thing. */
static bool scaled_number(const char *text, uint64_t step, uint64_t *number)
{
	static const char suffixes[] = "kmgt";
	const char *suffix;
	uint64_t value, factor = 1;
	char *end;

	if (!isdigit((unsigned char)*text))
		return false;
	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno)
		return false;
	if (*end) {
		suffix = strchr(suffixes, tolower((unsigned char)*end));
		if (!suffix)
			return false;
		for (; suffix >= suffixes; suffix--)
			factor *= step;
		end++;
		/* 64M, 64MB and 64MiB are the same size. */
		if (step == 1024 && (!strcasecmp(end, "b") || !strcasecmp(end, "ib")))
			end += strlen(end);
	}
	return !*end && !__builtin_mul_overflow(value, factor, number);
}

static void check_limits(const struct option_row *row, const char *text, uint64_t number)
{
	const char *what = row->kind == OPTION_SIZE ? " bytes" : "";

	if (number < row->least)
		usage_error("--%s: '%s' is too small (at least %" PRIu64 "%s)", row->name, text, row->least, what);
	if (row->most && number > row->most)
		usage_error("--%s: '%s' is too large (at most %" PRIu64 "%s)", row->name, text, row->most, what);
}

static void set_value(struct option_row *row, const char *text)
{
	char *end;

	switch (row->kind) {
	case OPTION_COUNT:
	case OPTION_SIZE: {
		bool size = row->kind == OPTION_SIZE;
		uint64_t *number = row->value;

		if (!scaled_number(text, size ? 1024 : 1000, number))
			usage_error("--%s: '%s' is not a %s", row->name, text,
				    size ? "size (write 4096, 64K, 512M or 2G)" : "count (write 1000, 10k or 2M)");
		check_limits(row, text, *number);
		break;
	}
	case OPTION_SECONDS: {
		double *seconds = row->value;

		*seconds = strtod(text, &end);
		if (end == text || *end || !isfinite(*seconds) || *seconds <= 0)
			usage_error("--%s: '%s' is not a number of seconds above 0", row->name, text);
		break;
	}
	case OPTION_CHOICE:
		*(int *)row->value = which_word(row, text);
		break;
	case OPTION_SET: {
		char *copy = strdup(text), *rest = copy, *word;
		uint64_t *set = row->value;

		*set = 0;
		while ((word = strsep(&rest, ",")))
			*set |= UINT64_C(1) << which_word(row, word);
		free(copy);
		break;
	}
	case OPTION_TEXT:
		*(const char **)row->value = text;
		break;
	case OPTION_FLAG:
		*(bool *)row->value = true;
		break;
	}
}

static void print_rows(const struct option_row *row)
{
	char left[96];

	for (; row->name; row++) {
		snprintf(left, sizeof(left), "--%s %s", row->name, row->words ? row->words : "");
		/* The explanation of a long option goes to a line of its own. */
		if (strlen(left) > HELP_COLUMN)
			printf("  %s\n  %*s  %s\n", left, HELP_COLUMN, "", row->help);
		else
			printf("  %-*s  %s\n", HELP_COLUMN, left, row->help);
	}
}

static void print_help(const char *summary, const struct option_row *own, const struct option_row *common)
{
	printf("Usage: %s [OPTIONS]\n%s\n\n", program_name, summary);
	print_rows(own);
	printf("\nCommon to all workloads:\n");
	print_rows(common);
	printf("\nSizes take K, M, G (powers of 1024), counts k, M, G (powers of 1000).\n");
}

static struct option_row *find_row(struct option_row *row, const char *name, size_t length)
{
	for (; row->name; row++)
		if (strlen(row->name) == length && !strncmp(row->name, name, length))
			return row;
	return NULL;
}

static void unknown_option(const char *name, size_t length, const struct option_row *own,
			   const struct option_row *common)
{
	const struct option_row *tables[] = { own, common };
	char word[MAX_WORD + 1];
	const char *best = NULL;
	unsigned int nearest = 4;

	snprintf(word, sizeof(word), "%.*s", (int)length, name);
	for (int table = 0; table < 2; table++) {
		for (const struct option_row *row = tables[table]; row->name; row++) {
			unsigned int far = distance(word, row->name);

			if (far < nearest && far < strlen(row->name)) {
				nearest = far;
				best = row->name;
			}
		}
	}
	if (best)
		usage_error("unknown option '--%s' (did you mean '--%s'?)", word, best);
	usage_error("unknown option '--%s'", word);
}

void options_parse(int argc, char **argv, const char *program, const char *summary, struct option_row *own,
		   struct option_row *common)
{
	program_name = program;
	for (int i = 1; i < argc; i++) {
		const char *name = argv[i], *value;
		struct option_row *row;
		size_t length;

		if (!strcmp(name, "--help")) {
			print_help(summary, own, common);
			exit(0);
		}
		if (strncmp(name, "--", 2) || !name[2])
			usage_error("'%s' is not an option", name);
		name += 2;
		length = strcspn(name, "=");
		value = name[length] ? name + length + 1 : NULL;
		row = find_row(own, name, length);
		if (!row)
			row = find_row(common, name, length);
		if (!row)
			unknown_option(name, length, own, common);
		if (row->given)
			usage_error("--%s is given twice", row->name);
		row->given = true;
		if (row->kind == OPTION_FLAG && value)
			usage_error("--%s takes no value", row->name);
		if (row->kind != OPTION_FLAG && !value) {
			if (++i == argc)
				usage_error("--%s needs a value: %s", row->name, row->words);
			value = argv[i];
		}
		set_value(row, value);
	}
}

void list_parse(const char *what, const char *text, list_visitor visit, void *context)
{
	const char *at = text;

	do {
		uint64_t from, to;
		char *end;

		if (!isdigit((unsigned char)*at))
			break;
		from = to = strtoull(at, &end, 10);
		at = end;
		if (*at == '-' && isdigit((unsigned char)at[1])) {
			to = strtoull(at + 1, &end, 10);
			at = end;
		}
		if (to < from || to > 1 << 20)
			break;
		for (; from <= to; from++)
			visit(from, context);
		if (!*at)
			return;
	} while (*at++ == ',');
	usage_error("%s: '%s' is not a list such as 0-3,8", what, text);
}
