/* SPDX-License-Identifier: BSD-3-Clause */
/* blocks: for builds whose malloc(3) is not ours to replace. */
#include "blocks.h"

void px_blocks_trim(void)
{
}
