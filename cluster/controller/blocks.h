/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * blocks: where a controller's large messages lie. libzmq asks malloc(3) for a frame's memory and
 * offers no other place; the C library maps and unmaps each of that size anew, so that the kernel
 * fills every page with zeros, one fault at a time, before it copies the message there: more
 * than half of the time that a frame of 100 MB takes. So this program has a malloc of its own for
 * what is large: blocks that are kept for the next message, of huge pages where the system has
 * them. All else is the C library's.
 *
 * With blocks_none.c in its place (under a sanitizer, or with another C library) nothing is kept.
 */
#ifndef PX_CONTROLLER_BLOCKS_H
#define PX_CONTROLLER_BLOCKS_H

/* Returns kept blocks to the system. Any thread; for when traffic has stopped. */
void px_blocks_trim(void);

#endif
