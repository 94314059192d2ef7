/* SPDX-License-Identifier: BSD-3-Clause */
/* imports: for systems whose dynamic linker keeps other tables, and for sanitizers, which watch
 * malloc(3)'s memory and no other. */
#include "wire/wire.h"

void px_blocks_use(void)
{
}

void px_sockets_guard(void)
{
}

void px_pid_keep(void)
{
}
