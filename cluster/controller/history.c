/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * history: how each task ended and where, kept for dependencies.
 *
 * An id is split into a prefix and a number ("<session>_<pid>" and n); ids without a number are
 * all prefix. 64 neighbouring numbers of one prefix share a block: two bits of
 * fate each, and, once one of them ran on an engine, that engine's serial number. Blocks are
 * in the order of their creation; when the limit is passed the oldest goes, unless one of its
 * tasks is unfinished: then it goes to the end of the line.
 */
#include "schedule.h"

#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#define BLOCK_SIZE 64
#define MAX_DIGITS 15
#define NO_NUMBER UINT64_MAX /* in place of a block's number */

struct prefix {
    uint64_t number;
    size_t blocks; /* that refer to it */
    UT_hash_handle hh;
    char text[];
};

struct key {
    uint64_t prefix;
    uint64_t block;
};

struct block {
    struct key key;
    struct prefix *prefix;
    uint32_t *engines; /* BLOCK_SIZE, or NULL while none ran on an engine */
    unsigned unfinished;
    uint8_t fates[BLOCK_SIZE / 4];
    struct block *prev, *next; /* by age */
    UT_hash_handle hh;
};

struct px_history {
    struct prefix *prefixes;
    struct block *blocks;  /* hash */
    struct block *oldest;  /* list */
    struct prefix *recent; /* the prefix asked for last: mostly it is the same again */
    uint64_t next_prefix;
    size_t bytes, most_bytes;
};

struct place {
    struct px_span prefix;
    uint64_t block;
    unsigned index;
};

/* Splits "<prefix>_<n>" where n is canonical, so that no two ids have one place. */
static struct place place_of(struct px_span msg_id)
{
    struct place place = {.prefix = msg_id, .block = NO_NUMBER};
    size_t at = msg_id.size;
    uint64_t number = 0, weight = 1;
    while (at > 0 && msg_id.size - at < MAX_DIGITS && msg_id.data[at - 1] >= '0' &&
           msg_id.data[at - 1] <= '9') {
        number += (uint64_t)(msg_id.data[--at] - '0') * weight;
        weight *= 10;
    }
    size_t digits = msg_id.size - at;
    if (digits == 0 || at == 0 || msg_id.data[at - 1] != '_' ||
        (digits > 1 && msg_id.data[at] == '0'))
        return place;
    place.prefix.size = at - 1;
    place.block = number / BLOCK_SIZE;
    place.index = (unsigned)(number % BLOCK_SIZE);
    return place;
}

static size_t prefix_bytes(const struct prefix *prefix)
{
    return sizeof(*prefix) + prefix->hh.keylen + 1;
}

static struct prefix *find_prefix(const struct px_history *history, struct px_span text)
{
    struct prefix *found = history->recent;
    if (found != NULL && found->hh.keylen == text.size &&
        memcmp(found->text, text.data, text.size) == 0)
        return found;
    HASH_FIND(hh, history->prefixes, text.data, text.size, found);
    return found;
}

static struct block *find_block(const struct px_history *history, struct place place)
{
    const struct prefix *prefix = find_prefix(history, place.prefix);
    if (prefix == NULL)
        return NULL;
    struct key key = {.prefix = prefix->number, .block = place.block};
    struct block *block;
    HASH_FIND(hh, history->blocks, &key, sizeof(key), block);
    return block;
}

static struct prefix *add_prefix(struct px_history *history, struct px_span text)
{
    struct prefix *prefix = px_alloc(sizeof(*prefix) + text.size + 1);
    memcpy(prefix->text, text.data, text.size);
    prefix->number = history->next_prefix++;
    HASH_ADD_KEYPTR(hh, history->prefixes, prefix->text, text.size, prefix);
    history->bytes += prefix_bytes(prefix);
    return prefix;
}

static struct block *add_block(struct px_history *history, struct place place)
{
    struct prefix *prefix = find_prefix(history, place.prefix);
    if (prefix == NULL)
        prefix = add_prefix(history, place.prefix);
    history->recent = prefix;
    prefix->blocks++;
    struct block *block = px_alloc(sizeof(*block));
    block->key = (struct key){.prefix = prefix->number, .block = place.block};
    block->prefix = prefix;
    HASH_ADD(hh, history->blocks, key, sizeof(block->key), block);
    DL_APPEND(history->oldest, block);
    history->bytes += sizeof(*block);
    return block;
}

static void drop_block(struct px_history *history, struct block *block)
{
    struct prefix *prefix = block->prefix;
    HASH_DEL(history->blocks, block);
    DL_DELETE(history->oldest, block);
    history->bytes -= sizeof(*block) + (block->engines ? BLOCK_SIZE * sizeof(uint32_t) : 0);
    free(block->engines);
    free(block);
    if (--prefix->blocks > 0)
        return;
    if (history->recent == prefix)
        history->recent = NULL;
    history->bytes -= prefix_bytes(prefix);
    HASH_DEL(history->prefixes, prefix);
    free(prefix);
}

/* Drops the oldest block; one with unfinished tasks, or just written, goes to the end instead. */
static void forget_one(struct px_history *history, const struct block *kept)
{
    struct block *block = history->oldest;
    if (block == NULL)
        return;
    if (block->unfinished == 0 && block != kept) {
        drop_block(history, block);
        return;
    }
    DL_DELETE(history->oldest, block);
    DL_APPEND(history->oldest, block);
}

static enum px_fate fate_at(const struct block *block, unsigned index)
{
    return (enum px_fate)(block->fates[index / 4] >> (index % 4 * 2) & 3);
}

void px_history_set(struct px_history *history, struct px_span msg_id, enum px_fate fate,
                    uint32_t engine)
{
    struct place place = place_of(msg_id);
    struct block *block = find_block(history, place);
    if (block == NULL)
        block = add_block(history, place);
    enum px_fate before = fate_at(block, place.index);
    block->unfinished += (fate == PX_UNFINISHED) - (unsigned)(before == PX_UNFINISHED);
    unsigned shift = place.index % 4 * 2;
    uint8_t *fates = &block->fates[place.index / 4];
    *fates = (uint8_t)((*fates & ~(3u << shift)) | (unsigned)fate << shift);
    if (engine != 0 && block->engines == NULL) {
        block->engines = px_alloc(BLOCK_SIZE * sizeof(uint32_t));
        history->bytes += BLOCK_SIZE * sizeof(uint32_t);
    }
    if (block->engines != NULL)
        block->engines[place.index] = engine;
    /* At most two steps a call: the cost stays constant, and the limit is held on average. */
    for (int step = 0; step < 2 && history->bytes > history->most_bytes; step++)
        forget_one(history, block);
}

enum px_fate px_history_get(const struct px_history *history, struct px_span msg_id,
                            uint32_t *engine)
{
    struct place place = place_of(msg_id);
    const struct block *block = find_block(history, place);
    if (engine != NULL)
        *engine = block != NULL && block->engines != NULL ? block->engines[place.index] : 0;
    return block != NULL ? fate_at(block, place.index) : PX_UNKNOWN;
}

size_t px_history_bytes(const struct px_history *history)
{
    return history->bytes;
}

struct px_history *px_history_create(size_t most_bytes)
{
    struct px_history *history = px_alloc(sizeof(*history));
    history->most_bytes = most_bytes;
    return history;
}

void px_history_destroy(struct px_history *history)
{
    if (history == NULL)
        return;
    while (history->oldest != NULL)
        drop_block(history, history->oldest);
    free(history);
}
