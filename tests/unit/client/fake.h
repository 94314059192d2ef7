/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A controller that does what a test tells it. A thread of its own answers connection requests;
 * everything else is the test's: it takes requests, and speaks as engines do.
 */
#ifndef PX_FAKE_H
#define PX_FAKE_H

#include "client/phalanx.h"
#include "wire/wire.h"

#define FAKE_KEY "a key for tests"
#define FAKE_TIMEOUT_MS 10000

struct fake;

/* `engines`: the connection_reply's members after "status", as JSON. */
struct fake *fake_create(const char *engines);
void fake_destroy(struct fake *fake);
/* A client of it; the test fails when there is none. */
phalanx_client *fake_connect(struct fake *fake);
const char *fake_file(const struct fake *fake);
/* What connection requests are answered from now on. */
void fake_set_engines(struct fake *fake, const char *engines);

/* Breaks the clients' iopub connections; lets them connect again. */
void fake_break_iopub(struct fake *fake);
void fake_mend_iopub(struct fake *fake);
/* Instead of mending: what connects is closed at once, as by a tunnel without another end. */
void fake_close_iopub_at_once(struct fake *fake);

enum fake_channel { FAKE_MUX, FAKE_TASK, FAKE_CONTROL };

/* The next request on a channel; the test fails at the deadline. The caller destroys it. */
struct px_msg *fake_request(struct fake *fake, enum fake_channel channel);
/* An engine (its uuid) answers a request. */
void fake_reply(struct fake *fake, enum fake_channel channel, const char *engine,
                const struct px_msg *request, const char *content);
/* The same for mux, with more members of the metadata, as JSON. */
void fake_reply_with(struct fake *fake, const char *engine, const struct px_msg *request,
                     const char *members);
/* The same under a signature made with another key. */
void fake_forge(struct fake *fake, const char *engine, const struct px_msg *request,
                const char *content);
/* The task scheduler answers in an engine's place. */
void fake_refuse(struct fake *fake, const struct px_msg *request, const char *content);
/* An engine publishes for a request; the topic is of no matter. */
void fake_publish(struct fake *fake, const char *engine, const struct px_msg *request,
                  const char *type, const char *content);
void fake_idle(struct fake *fake, const char *engine, const struct px_msg *request);
void fake_notify(struct fake *fake, const char *type, const char *content);

#endif
