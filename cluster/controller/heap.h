/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * heap: items by a number, least first; each item knows its place, so that it can leave from
 * the middle. Push, pop and remove are O(log n); pushing numbers that grow is O(1).
 */
#ifndef PX_HEAP_H
#define PX_HEAP_H

#include <stddef.h>
#include <stdint.h>

struct px_heap_entry {
    uint64_t key;
    void *item;
    size_t *at;
};

/* All zero is an empty heap. */
struct px_heap {
    struct px_heap_entry *entries;
    size_t count, size;
};

/* `at` is the item's own field: 0 while it is in no heap, otherwise its place plus one. */
void px_heap_push(struct px_heap *heap, uint64_t key, void *item, size_t *at);
/* Takes the item whose field `at` is out of the heap; nothing happens when it is in none. */
void px_heap_remove(struct px_heap *heap, size_t *at);
void px_heap_fini(struct px_heap *heap);

/* The number of the item whose field is `at`, not 0. */
static inline uint64_t px_heap_key(const struct px_heap *heap, size_t at)
{
    return heap->entries[at - 1].key;
}

static inline const struct px_heap_entry *px_heap_top(const struct px_heap *heap)
{
    return heap->count > 0 ? &heap->entries[0] : NULL;
}

#endif
