/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Private to kernel/wire: the blocks that large frames lie in (blocks.c), and who has them put
 * there (imports.c). All functions: any thread.
 */
#ifndef PX_WIRE_BLOCKS_H
#define PX_WIRE_BLOCKS_H

#include "wire/wire.h"

#define PX_BLOCK_LEAST ((size_t)256 << 10) /* below, the C library does as well */

/* Memory for `size` bytes, at least PX_BLOCK_LEAST, aligned as malloc(3)'s; NULL when there is none
 * to be had, or too many blocks are in use. */
void *px_block_take(size_t size);
/* The bytes behind `memory`; 0 when it is no block. It is NULL or what some malloc(3) gave. */
size_t px_block_room(void *memory);
/* Takes a block back. False, and nothing was done, when it is none. */
bool px_block_give(void *memory);

#endif
