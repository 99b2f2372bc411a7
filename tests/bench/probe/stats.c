// SPDX-License-Identifier: Apache-2.0
/* Medians, quartiles and the 95 % interval of the median (by order statistics). */
#include "probe.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double at(const double *sorted, int n, double fraction)
{
	double rank = fraction * (n - 1);
	int low = (int)rank;
	int high = low + 1 < n ? low + 1 : low;

	return sorted[low] + (sorted[high] - sorted[low]) * (rank - low);
}

/* Sorts the values in place. */
double median(double *values, int n)
{
	qsort(values, n, sizeof(*values), ascending);
	return at(values, n, 0.5);
}

struct summary {
	double median, q1, q3, min, low, high;
};

static struct summary summarise(const double *values, int n)
{
	double *copy = malloc(n * sizeof(*copy));
	struct summary s;
	double half = 0.98 / sqrt(n);

	memcpy(copy, values, n * sizeof(*copy));
	s.median = median(copy, n);
	s.q1 = at(copy, n, 0.25);
	s.q3 = at(copy, n, 0.75);
	s.min = copy[0];
	s.low = at(copy, n, fmax(0, 0.5 - half));
	s.high = at(copy, n, fmin(1, 0.5 + half));
	free(copy);
	return s;
}

void report(struct options *o)
{
	struct variant *base = &o->variants[0];
	double *ratio = malloc(o->rounds * sizeof(*ratio));

	if (o->json)
		printf("{\"command\":\"%s\",\"rounds\":%d,\"operations\":%d,\"variants\":[",
		       o->command, o->rounds, o->ops * o->batches);
	else
		printf("%s: %d rounds of %d batches of %d operations, ns per operation\n"
		       "%-12s %9s %9s %9s %9s   ratio to %s: median [95%% interval] (quartiles)\n",
		       o->command, o->rounds, o->batches, o->ops, "", "median", "q1", "q3", "min",
		       base->name);
	for (int i = 0; i < o->count; i++) {
		struct variant *v = &o->variants[i];
		struct summary s = summarise(v->ns, o->rounds), r;

		for (int k = 0; k < o->rounds; k++)
			ratio[k] = v->ns[k] / base->ns[k];
		r = summarise(ratio, o->rounds);
		if (o->json) {
			printf("%s{\"name\":\"%s\",\"median_ns\":%.2f,\"q1_ns\":%.2f,\"q3_ns\":%.2f,"
			       "\"min_ns\":%.2f,\"rounds_ns\":[",
			       i ? "," : "", v->name, s.median, s.q1, s.q3, s.min);
			for (int k = 0; k < o->rounds; k++)
				printf("%s%.2f", k ? "," : "", v->ns[k]);
			printf("]}");
		} else if (i) {
			printf("%-12s %9.1f %9.1f %9.1f %9.1f   %.4f [%.4f %.4f] (%.4f %.4f)\n",
			       v->name, s.median, s.q1, s.q3, s.min, r.median, r.low, r.high, r.q1,
			       r.q3);
		} else {
			printf("%-12s %9.1f %9.1f %9.1f %9.1f\n", v->name, s.median, s.q1, s.q3,
			       s.min);
		}
	}
	if (o->json)
		printf("]}\n");
	free(ratio);
}
