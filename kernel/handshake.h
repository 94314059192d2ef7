/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * handshake: how a kernel that chose its own ports makes them known. Private to pxkernel.
 */
#ifndef PX_HANDSHAKE_H
#define PX_HANDSHAKE_H

#include "wire/wire.h"

#define PX_HANDSHAKE_MS 30000

/*
 * Sends the ports of `connection`, all of them bound, to whoever listens at its registration_port,
 * and waits until he has said that he knows them. `session` signs, and verifies what he says.
 * PX_ETIME when he says nothing within PX_HANDSHAKE_MS; PX_EINVAL when he refuses, or where there
 * is no such address. Any thread, which waits, and lets an interrupt end the process meanwhile.
 * Source: Jupyter Enhancement Proposal 66, "Kernel Handshaking pattern".
 */
PX_MUST_USE int px_handshake(void *context, struct px_session *session,
                             const struct px_kernel_connection *connection, struct px_error *err);

#endif
