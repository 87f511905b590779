/*
 * The table of GUPS (HPC Challenge RandomAccess): words that are exclusive-or'ed at random places.
 *
 * An update reads a random number r and does table[place(r)] ^= r. Doing all updates a second time undoes them, which
 * is what verification does.
 */
#ifndef NUMALAB_GUPS_TABLE_H
#define NUMALAB_GUPS_TABLE_H

#include <stdint.h>

/* Words [from, to) of a new table: word i holds i. One pass. */
void table_fill(uint64_t *table, uint64_t from, uint64_t to);

/* The updates of stream number `stream` of `seed`, as fast as possible: threads that collide may lose an update. */
void table_update(uint64_t *table, uint64_t words, uint64_t updates, uint64_t seed, uint64_t stream);

/* The same updates, none of which is lost, for verification. */
void table_update_atomic(uint64_t *table, uint64_t words, uint64_t updates, uint64_t seed, uint64_t stream);

/* Number of words in [from, to) that do not hold what table_fill() wrote. */
uint64_t table_errors(const uint64_t *table, uint64_t from, uint64_t to);

#endif
