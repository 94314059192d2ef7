/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * blocks: memory for large frames, kept for the next of them while there is traffic.
 *
 *     block, at the start of a page
 *     +--------+----------------------------+
 *     | header | what the caller got        |
 *     +--------+----------------------------+
 *              ^ HEADER
 *
 * A pointer is a block's if it lies HEADER bytes into a page and the header says so: it holds a
 * number that nobody outside can know, mixed with its address. Any pointer to allocated memory may
 * be asked: the header of one that is not a block's would lie in the same page.
 *
 * Given back, a block is kept for a request that fills most of it, until KEPT_BYTES or KEPT_MOST
 * are exceeded (then the oldest goes), or PX_BLOCKS_WARM_MS pass in which no block was asked for.
 *
 * Not of huge pages: used again, they save a twentieth of the time that a message takes; but in a
 * virtual machine whose host takes back what is free in large pieces, a huge page that is new
 * costs three times what new small ones do, and any burst of messages begins with new ones.
 */
#define _GNU_SOURCE
#include "blocks.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#define LEAST_PAGE ((size_t)4 << 10)   /* a page of any system is a multiple */
#define PAGE ((size_t)64 << 10)        /* the largest that a system has */
#define HEADER ((size_t)64)            /* malloc(3)'s alignment holds behind it */
#define KEPT_BYTES ((size_t)512 << 20) /* five messages of 100 MB */
#define KEPT_MOST 64                   /* they are searched one by one */
#define MOST_BLOCKS 8192               /* a mapping each; a process may have 65,530 */
#define MOST_BYTES (SIZE_MAX / 4)      /* so that sums of sizes cannot wrap */

struct block {
    uint64_t mark;
    size_t size; /* of the mapping */
};

struct kept {
    struct block *block;
    size_t size; /* the same, so that a search touches no block */
};

static struct {
    pthread_once_t once;
    _Atomic uint64_t secret;     /* written once; 0 before the first block is taken */
    pthread_mutex_t lock;        /* around what follows; large frames are few */
    struct kept kept[KEPT_MOST]; /* oldest first */
    size_t kept_count, kept_bytes;
    size_t mapped;    /* blocks, kept or in use */
    int64_t taken_ms; /* when one was last asked for; 0: not since all were let go of */
    atomic_bool warm; /* not 0 */
} blocks = {.once = PTHREAD_ONCE_INIT, .lock = PTHREAD_MUTEX_INITIALIZER};

static size_t round_up(size_t size, size_t unit)
{
    return (size + unit - 1) & ~(unit - 1);
}

/* ---- which memory is a block ---- */

static void lock_for_fork(void)
{
    pthread_mutex_lock(&blocks.lock);
}

static void unlock_after_fork(void)
{
    pthread_mutex_unlock(&blocks.lock);
}

static void begin(void)
{
    uint64_t secret; /* others may be asking already what is a block */
    px_random(&secret, sizeof secret);
    blocks.secret = secret;
    (void)pthread_atfork(lock_for_fork, unlock_after_fork, unlock_after_fork);
}

static uint64_t mark_of(const struct block *block)
{
    return blocks.secret ^ (uintptr_t)block;
}

/* What it may read in front of memory that is no block's is a red zone to a sanitizer, or another
 * thread's. */
__attribute__((no_sanitize_address, no_sanitize_thread)) static struct block *block_of(void *memory)
{
    if (((uintptr_t)memory & (LEAST_PAGE - 1)) != HEADER)
        return NULL;
    struct block *block = (struct block *)((char *)memory - HEADER);
    return block->mark == mark_of(block) ? block : NULL;
}

size_t px_block_room(void *memory)
{
    const struct block *block = block_of(memory);
    return block ? block->size - HEADER : 0;
}

/* ---- the system's side ---- */

static struct block *map_block(size_t size)
{
    void *mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED)
        return NULL;
    struct block *block = mapped;
    block->size = size;
    return block;
}

static void unmap_all(const struct kept *gone, size_t count)
{
    for (size_t i = 0; i < count; i++)
        munmap(gone[i].block, gone[i].size);
}

/* ---- keeping: lock held ---- */

static struct block *remove_kept(size_t at)
{
    struct block *block = blocks.kept[at].block;
    blocks.kept_bytes -= blocks.kept[at].size;
    blocks.kept_count--;
    memmove(&blocks.kept[at], &blocks.kept[at + 1], (blocks.kept_count - at) * sizeof *blocks.kept);
    return block;
}

/* The smallest kept one for `size` bytes; NULL when none is near that size. */
static struct block *find_kept(size_t size)
{
    size_t best = KEPT_MOST;
    for (size_t i = 0; i < blocks.kept_count; i++) {
        const size_t has = blocks.kept[i].size;
        if (has >= size && has - size <= size / 4 &&
            (best == KEPT_MOST || has < blocks.kept[best].size))
            best = i;
    }
    return best == KEPT_MOST ? NULL : remove_kept(best);
}

/* Keeps `block`. Returns how many went for it, into `gone`. */
static size_t keep(struct block *block, struct kept gone[KEPT_MOST])
{
    size_t count = 0;
    while (blocks.kept_count == KEPT_MOST ||
           (blocks.kept_count && blocks.kept_bytes + block->size > KEPT_BYTES)) {
        gone[count++] = blocks.kept[0];
        remove_kept(0);
    }
    blocks.kept[blocks.kept_count++] = (struct kept){block, block->size};
    blocks.kept_bytes += block->size;
    return count;
}

static size_t keep_none(struct kept gone[KEPT_MOST])
{
    const size_t count = blocks.kept_count;
    memcpy(gone, blocks.kept, count * sizeof *gone);
    blocks.mapped -= count;
    blocks.kept_count = blocks.kept_bytes = 0;
    blocks.taken_ms = 0;
    blocks.warm = false;
    return count;
}

/* How long yet, until `idle_ms` have passed since one was asked for. */
static int64_t left_ms(int64_t idle_ms)
{
    const int64_t left = blocks.taken_ms ? blocks.taken_ms + idle_ms - px_now_ms() : 0;
    return left > 0 ? left : 0;
}

/* ---- taking and giving ---- */

void *px_block_take(size_t wanted)
{
    if (wanted > MOST_BYTES)
        return NULL;
    pthread_once(&blocks.once, begin);
    const size_t size = round_up(wanted + HEADER, PAGE);
    pthread_mutex_lock(&blocks.lock);
    blocks.taken_ms = px_now_ms();
    blocks.warm = true;
    struct block *block = find_kept(size);
    const bool more = !block && blocks.mapped < MOST_BLOCKS;
    blocks.mapped += more;
    pthread_mutex_unlock(&blocks.lock);
    if (more && !(block = map_block(size))) {
        pthread_mutex_lock(&blocks.lock);
        blocks.mapped--;
        pthread_mutex_unlock(&blocks.lock);
    }
    if (!block)
        return NULL;
    block->mark = mark_of(block);
    return (char *)block + HEADER;
}

bool px_block_give(void *memory)
{
    struct block *block = block_of(memory);
    if (!block)
        return false;
    struct kept gone[KEPT_MOST];
    size_t count = 0;
    block->mark = 0;
    pthread_mutex_lock(&blocks.lock);
    if (left_ms(PX_BLOCKS_WARM_MS) > 0 && block->size <= KEPT_BYTES)
        count = keep(block, gone);
    else
        gone[count++] = (struct kept){block, block->size};
    blocks.mapped -= count;
    pthread_mutex_unlock(&blocks.lock);
    unmap_all(gone, count);
    return true;
}

bool px_blocks_warm(void)
{
    return atomic_load_explicit(&blocks.warm, memory_order_relaxed);
}

int64_t px_blocks_cool(int64_t idle_ms)
{
    struct kept gone[KEPT_MOST];
    pthread_mutex_lock(&blocks.lock);
    const int64_t left = left_ms(idle_ms);
    const size_t count = left ? 0 : keep_none(gone);
    pthread_mutex_unlock(&blocks.lock);
    unmap_all(gone, count);
    return left;
}
