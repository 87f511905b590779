#include "result.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fail.h"

static FILE *next_metric(struct result *result, const char *metric)
{
	fprintf(result->stream, "%s\"%s\": ", result->metrics++ ? ", " : "", metric);
	return result->stream;
}

void result_begin(struct result *result)
{
	*result = (struct result){ 0 };
	result->stream = open_memstream(&result->text, &result->size);
	if (!result->stream)
		fail("no memory for the result line");
}

void result_count(struct result *result, const char *metric, uint64_t value)
{
	fprintf(next_metric(result, metric), "%" PRIu64, value);
}

void result_real(struct result *result, const char *metric, double value)
{
	if (!isfinite(value))
		result_missing(result, metric);
	else
		fprintf(next_metric(result, metric), "%.9g", value);
}

void result_missing(struct result *result, const char *metric)
{
	fputs("null", next_metric(result, metric));
}

void result_print(struct result *result, const char *people, ...)
{
	va_list args;

	if (fclose(result->stream))
		fail("no memory for the result line");
	printf("%s: ", program_name);
	va_start(args, people);
	vprintf(people, args);
	va_end(args);
	printf("\nnumalab-result: {%s}\n", result->text);
	free(result->text);
	if (fflush(stdout) || ferror(stdout))
		fail("cannot write the result: %s", strerror(errno));
}
