/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * blocks: malloc(3) and free(3) of this program, as "Replacing malloc" of the GNU C library's
 * manual allows. From LARGE bytes on, memory is a block; below, it is the C library's.
 *
 *     block, at a multiple of HUGE bytes
 *     +--------+----------------------------+
 *     | header | what the caller got        |
 *     +--------+----------------------------+
 *              ^ HEADER
 *
 * A pointer is a block's if it lies HEADER bytes into an aligned place and the header says so: it
 * holds a number that nobody outside can know, mixed with its address. Any pointer to allocated
 * memory may be asked: the header of one that is not a block's would lie in the same page.
 *
 * Freed blocks are kept, up to KEPT_BYTES, for requests that fill most of them; px_blocks_trim()
 * lets go of them.
 */
#define _GNU_SOURCE
#include "blocks.h"

#include "base/base.h"

#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE ((size_t)2 << 20)         /* a huge page, and the alignment of a block */
#define LARGE ((size_t)4 << 20)        /* the C library keeps what is smaller, if it comes often */
#define PAGE ((size_t)64 << 10)        /* the largest that a system has in small ones */
#define HEADER ((size_t)64)            /* malloc(3)'s alignment holds behind it */
#define KEPT_BYTES ((size_t)512 << 20) /* five messages of 100 MB */
#define MOST_BYTES (SIZE_MAX / 4)      /* so that sums of sizes cannot wrap */

/* The build hides what is not meant for other libraries; these are. */
#define PX_EXPORTED __attribute__((visibility("default")))
#define BEFORE_MAIN __attribute__((constructor))

extern void *__libc_malloc(size_t size);
extern void __libc_free(void *memory);
extern void *__libc_realloc(void *memory, size_t size);

struct block {
    uint64_t mark;
    size_t size;        /* of the mapping */
    struct block *next; /* while it is kept */
};

static struct {
    uint64_t secret;      /* written once, before main() */
    pthread_mutex_t lock; /* around what follows; large messages are few */
    struct block *kept;
    size_t kept_bytes;
} blocks = {.lock = PTHREAD_MUTEX_INITIALIZER};

static size_t round_up(size_t size, size_t unit)
{
    return (size + unit - 1) & ~(unit - 1);
}

BEFORE_MAIN static void choose_secret(void)
{
    px_random(&blocks.secret, sizeof blocks.secret);
}

static uint64_t mark_of(const struct block *block)
{
    return blocks.secret ^ (uintptr_t)block;
}

/* The block that `memory` is the caller's part of, or NULL. */
static struct block *block_of(void *memory)
{
    if (((uintptr_t)memory & (HUGE - 1)) != HEADER)
        return NULL;
    struct block *block = (struct block *)((char *)memory - HEADER);
    return block->mark == mark_of(block) ? block : NULL;
}

/* Maps `size` bytes at a multiple of HUGE: more is mapped and what is too much given back. */
static struct block *map_block(size_t size)
{
    char *mapped =
        mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED)
        return NULL;
    char *start = (char *)round_up((uintptr_t)mapped, HUGE);
    const size_t before = (size_t)(start - mapped), after = HUGE - before;
    if (before)
        munmap(mapped, before);
    if (after)
        munmap(start + size, after);
    /* Not for the rest beyond the last whole one: it would cost a huge page. */
    madvise(start, size & ~(HUGE - 1), MADV_HUGEPAGE);
    struct block *block = (struct block *)start;
    block->size = size;
    return block;
}

/* The smallest kept block for `size` bytes, off the list; NULL when none is near that size. */
static struct block *take_kept(size_t size)
{
    struct block **best = NULL;
    for (struct block **at = &blocks.kept; *at; at = &(*at)->next)
        if ((*at)->size >= size && (*at)->size - size <= size / 4 &&
            (!best || (*at)->size < (*best)->size))
            best = at;
    struct block *block = best ? *best : NULL;
    if (block) {
        *best = block->next;
        blocks.kept_bytes -= block->size;
    }
    return block;
}

static void *large(size_t wanted)
{
    if (wanted > MOST_BYTES)
        return NULL;
    const size_t size = round_up(wanted + HEADER, PAGE);
    pthread_mutex_lock(&blocks.lock);
    struct block *block = take_kept(size);
    pthread_mutex_unlock(&blocks.lock);
    if (!block)
        block = map_block(size);
    if (!block)
        return NULL;
    block->mark = mark_of(block);
    return (char *)block + HEADER;
}

static void release(struct block *block)
{
    block->mark = 0;
    pthread_mutex_lock(&blocks.lock);
    const bool keep = blocks.kept_bytes + block->size <= KEPT_BYTES;
    if (keep) {
        block->next = blocks.kept;
        blocks.kept = block;
        blocks.kept_bytes += block->size;
    }
    pthread_mutex_unlock(&blocks.lock);
    if (!keep)
        munmap(block, block->size);
}

void px_blocks_trim(void)
{
    pthread_mutex_lock(&blocks.lock);
    struct block *block = blocks.kept;
    blocks.kept = NULL;
    blocks.kept_bytes = 0;
    pthread_mutex_unlock(&blocks.lock);
    while (block) {
        struct block *next = block->next;
        munmap(block, block->size);
        block = next;
    }
}

PX_EXPORTED void *malloc(size_t size)
{
    if (size < LARGE)
        return __libc_malloc(size);
    void *memory = large(size);
    if (!memory)
        errno = ENOMEM;
    return memory;
}

PX_EXPORTED void free(void *memory)
{
    struct block *block = block_of(memory);
    if (!block) {
        __libc_free(memory);
        return;
    }
    const int kept = errno; /* free(3) leaves it alone */
    release(block);
    errno = kept;
}

PX_EXPORTED size_t malloc_usable_size(void *memory)
{
    static size_t (*ask)(void *);
    const struct block *block = block_of(memory);
    if (block)
        return block->size - HEADER;
    if (!ask)
        *(void **)&ask = dlsym(RTLD_NEXT, "malloc_usable_size");
    return ask(memory);
}

PX_EXPORTED void *realloc(void *memory, size_t size)
{
    struct block *block = block_of(memory);
    if (!block)
        return __libc_realloc(memory, size);
    const size_t room = block->size - HEADER;
    if (size <= room && size > room / 2)
        return memory;
    void *moved = malloc(size);
    if (!moved)
        return NULL;
    memcpy(moved, memory, size < room ? size : room);
    release(block);
    return moved;
}
