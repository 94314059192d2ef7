/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * comeback: after a controller was killed, which of its tasks engines have.
 *
 * The database may not know what was submitted or sent in the last moment, or there is none. A task
 * that is submitted may then be on an engine already, and must not run on another. So while engines
 * of before come back, tasks are parked; each engine says which it has (protocol.h, PX_HELD), or
 * goes, or does not say it in time. Then all that is parked is let go, with the engine that has it.
 *
 * Pure but for its clock: no sockets, and time is told.
 */
#ifndef PX_COMEBACK_H
#define PX_COMEBACK_H

#include "wire/wire.h"

#define PX_MAX_ELSEWHERE 1000000u /* tasks that engines have and nobody else knows */

struct px_comeback;

struct px_comeback *px_comeback_create(void);
void px_comeback_destroy(struct px_comeback *comeback); /* with what is parked */
/* An engine of before, which will say what it has. */
void px_comeback_expect(struct px_comeback *comeback, struct px_span uuid);
/* It is not expected any more, and has nothing. */
void px_comeback_leave(struct px_comeback *comeback, struct px_span uuid);
/* It has said what it has, after this. */
void px_comeback_arrived(struct px_comeback *comeback, struct px_span uuid);
void px_comeback_holds(struct px_comeback *comeback, struct px_span uuid, struct px_span msg_id);
/* Nobody is expected any more. */
void px_comeback_give_up(struct px_comeback *comeback);
/* Whether tasks are to be parked. */
bool px_comeback_waits(const struct px_comeback *comeback);
void px_comeback_park(struct px_comeback *comeback, struct px_msg *msg); /* taken */
/* The first that was parked; the caller's. NULL: none. */
struct px_msg *px_comeback_unpark(struct px_comeback *comeback);
/* Forgets the task; true, with the engine in `uuid`, when one had it. */
bool px_comeback_take(struct px_comeback *comeback, struct px_span msg_id,
                      char uuid[PX_MAX_IDENTITY + 1]);

#endif
