/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * heap: a binary heap in an array. Entry i is not greater than entries 2i+1 and 2i+2; each
 * entry's owner is told its place whenever it moves.
 */
#include "heap.h"

#include "base/base.h"

#include <stdlib.h>

static void put(struct px_heap *heap, size_t index, struct px_heap_entry entry)
{
    heap->entries[index] = entry;
    *entry.at = index + 1;
}

static void sift_up(struct px_heap *heap, size_t index, struct px_heap_entry entry)
{
    while (index > 0 && heap->entries[(index - 1) / 2].key > entry.key) {
        put(heap, index, heap->entries[(index - 1) / 2]);
        index = (index - 1) / 2;
    }
    put(heap, index, entry);
}

static void sift_down(struct px_heap *heap, size_t index, struct px_heap_entry entry)
{
    for (size_t child = index * 2 + 1; child < heap->count; child = index * 2 + 1) {
        if (child + 1 < heap->count && heap->entries[child + 1].key < heap->entries[child].key)
            child++;
        if (heap->entries[child].key >= entry.key)
            break;
        put(heap, index, heap->entries[child]);
        index = child;
    }
    put(heap, index, entry);
}

void px_heap_push(struct px_heap *heap, uint64_t key, void *item, size_t *at)
{
    if (heap->count == heap->size) {
        heap->size = heap->size * 2 + 16;
        heap->entries = px_realloc(heap->entries, heap->size * sizeof(*heap->entries));
    }
    sift_up(heap, heap->count++, (struct px_heap_entry){key, item, at});
}

void px_heap_remove(struct px_heap *heap, size_t *at)
{
    if (*at == 0)
        return;
    size_t index = *at - 1;
    *at = 0;
    struct px_heap_entry last = heap->entries[--heap->count];
    if (index == heap->count)
        return;
    if (index > 0 && heap->entries[(index - 1) / 2].key > last.key)
        sift_up(heap, index, last);
    else
        sift_down(heap, index, last);
}

void px_heap_fini(struct px_heap *heap)
{
    free(heap->entries);
    *heap = (struct px_heap){0};
}
