/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The names of ipyparallel's wire that controller, engine and client share, once each.
 * Spelled as on the wire.
 */
#ifndef PX_PROTOCOL_H
#define PX_PROTOCOL_H

/* Routing ids of the engine-facing sockets: distinct, so that an engine's one ROUTER can address
 * each. */
#define PX_ID_MUX_OUT "mux_out"
#define PX_ID_TASK_OUT "task_out"
#define PX_ID_CONTROL_OUT "control_out"
#define PX_ID_BROADCAST_ROOT "sub_scheduler_0"

/* hub */
#define PX_REGISTRATION_REQUEST "registration_request"
#define PX_REGISTRATION_REPLY "registration_reply"
#define PX_UNREGISTRATION_REQUEST "unregistration_request"
#define PX_REGISTRATION_NOTIFICATION "registration_notification"
#define PX_UNREGISTRATION_NOTIFICATION "unregistration_notification"
#define PX_SHUTDOWN_NOTIFICATION "shutdown_notification"
/*
 * Ours: true in an unregistration_notification of no engine ("id": -1), it says that the controller
 * ends, and that none will come in its place. Clients of ipyparallel pass over that, where a
 * shutdown_notification has them close themselves and print errors.
 */
#define PX_GOODBYE "px_goodbye"
#define PX_CONNECTION_REQUEST "connection_request"
#define PX_CONNECTION_REPLY "connection_reply"

/*
 * Ours: what an engine announces beyond the common protocol, in its registration_request: "px":
 * {"features": [...]}. Hubs hand it on with the engine: registration_notification "px", and
 * "px_engines" {id: [...]} of a connection_reply. Among the words are names that clients may choose
 * engines by, of at most PX_TAG_SIZE bytes: "tag:gpu", and "host:node1" of every engine.
 */
#define PX_TAG "tag:"
#define PX_HOST "host:"
#define PX_TAG_SIZE 64

/*
 * Ours: why have these tasks not ended?  {"msg_ids": [...]}  ->  {"status": "ok", "tasks": {id: {
 *     "state": "waiting", "queued", "running", "done" or "unknown", "why": a sentence,
 *     "engine": id or null, "since_s": seconds in that state (not when done or unknown),
 *     "outstanding": ids of dependencies, at most ten, "outstanding_count": of all of them,
 *     "timeout_s": seconds until it fails (the last three when it waits, where they apply)}}}
 */
#define PX_WHY_REQUEST "why_request"
#define PX_WHY_REPLY "why_reply"

/*
 * Ours: how the controller is. status_request {} gets status_reply
 *
 *     {"status": "ok", "version", "pid", "uptime_s", "scheme", "curve",
 *      "engines": [{"id", "uuid", "host", "pid" (null when not known), "since_s",
 *                   "queue", "tasks", "completed", "tags": [...]}],
 *      "registering": how many, "deaths": the last hundred [{"id", "uuid", "cause", "ago_s"}],
 *      "tasks": {"direct", "unassigned", of the scheduler "blocked", "waiting", "running",
 *                "submitted", "succeeded", "failed", ...},
 *      "adapt": who starts and ends engines (below) [{"owner", "min", "max", "joining"}],
 *      "database": {"kind", "records", "bytes", "lost"},
 *      "memory": {"resident_bytes", "unread_bytes" (replies that clients have not read)},
 *      "sockets": [{"name", "side", "messages", "bytes", "malformed", "bad_signatures",
 *                   "oversized", "dropped", "cut" (PX_UNREAD)}], messages being those that came in,
 *      "hearts": {...}, "broadcast": {...}, "link": {...}}
 *
 * An engine's registration_request says where it is: "px": {"host", "pid"}.
 */
#define PX_STATUS_REQUEST "status_request"
#define PX_STATUS_REPLY "status_reply"
/*
 * Ours: engines that come and go as there is work (launch/adapt.c). Who starts and ends them is
 * their owner; they offer the feature PX_ADAPT "<owner>:<number of their set>". An adapt_request
 *
 *     {"owner", "seen": the serial of the last reply, "retire": [ids of engines],
 *      "idle_s": if they have had no work for so long,
 *      "min", "max", "joining": for status_reply}
 *
 * gets, when something is otherwise than in that reply, and a second after it at the soonest, an
 * adapt_reply
 *
 *     {"status": "ok", "serial", "waiting": tasks that no engine has taken and a new one might,
 *      "engines": [[id, set, idle_ms: since its last work, -1 while it has some,
 *                   -2 for a minute when it has gone or retires]]}
 *
 * An engine that retires gets no more tasks, and PX_RETIRE_REQUEST behind what it was sent
 * directly. One request of an owner stands at a time; the next one takes its place.
 */
#define PX_ADAPT "adapt:"
#define PX_ADAPT_REQUEST "adapt_request"
#define PX_ADAPT_REPLY "adapt_reply"
#define PX_RETIRE_REQUEST "px_retire_request"

/* engines */
#define PX_APPLY_REQUEST "apply_request"
#define PX_APPLY_REPLY "apply_reply"
#define PX_EXECUTE_REQUEST "execute_request"
/*
 * Ours: asked of the hub, {"msg_ids": [...]}, it ends the tasks of these ids that wait in the
 * scheduler; each gets the reply that an engine gives to what it aborts. Engines are asked besides.
 * The scheme "pure" keeps no books: an error.
 */
#define PX_ABORT_REQUEST "abort_request"
#define PX_CLEAR_REQUEST "clear_request"
#define PX_SHUTDOWN_REQUEST "shutdown_request"
#define PX_SIGNAL_REQUEST "signal_request"
/*
 * Ours, in a signal_request: the id of a task that the signal is meant for. One that waits, or has
 * not arrived, is aborted, and there is no signal where it does not run: it would hit another task.
 */
#define PX_OR_ABORT "px_or_abort"
#define PX_STACKS_REQUEST "stacks_request" /* an addition of ours, see engine/trace.h */

/*
 * Ours: the task scheduler asks an engine that offers the feature "recall" to hand back tasks that
 * it has not begun. Each comes back as an apply_reply with metadata.status "recalled"; the engine
 * then takes the same message again.
 */
#define PX_RECALL_REQUEST "px_recall_request"
#define PX_RECALLED "recalled"

/*
 * Ours: a connection that broke, or a controller that was killed, takes along what was under way.
 * So what has not been answered is sent again, byte for byte, and whoever has had it passes over
 * it, since a signature is accepted once. PX_AGAIN is the last identity of a message sent so:
 *
 *   client to controller  its unanswered requests, where the connection_reply says "px_again": the
 *                         number that it said before, which a cluster has from its start, and
 *                         keeps with --restore. A controller that has had one owes its reply to the
 *                         connection by which it came again
 *   engine to controller  its last replies, before it answers a probe: any request from a client of
 *                         the name PX_PROBE<n>. It offers the feature "again".
 *
 * A reply that was sent some time before the connection broke is marked PX_AGAIN_OLD instead: its
 * client has had it in all likelihood. One of ipyparallel does not get it, as it complains of what
 * it has had; to the books it may be news.
 *
 * On the task socket the last replies are followed by E | PX_HELD | <IDS|MSG> px_held with the
 * content {"msg_ids": [...]}: the tasks that the engine has and will answer.
 */
#define PX_NAMES "px." /* identities that begin so are ours: no client may have one */
#define PX_AGAIN "px.again"
#define PX_AGAIN_OLD "px.again.old"
#define PX_PROBE "px.probe."
#define PX_HELD "px.held"

/*
 * Ours: several messages as one (kernel/wire/bundle.c). A member "px_bundles": true of a
 * registration_reply or a connection_reply says that the sockets of mux and task take them; an engine
 * or a client then greets these, and gets such from then on.
 */
#define PX_BUNDLES "px_bundles"

/*
 * Ours: in the metadata of an engine's reply to execute or apply, how many messages it has published
 * for the request until then, statuses aside. Absent for none.
 */
#define PX_OUTPUTS "px_outputs"

/*
 * Ours: an engine's error whose exception is none of Python's own has "px_kinds" in its content:
 * ["module:qualified.name", ...], its class and those that this inherits from, in Python's order.
 */

/*
 * Ours: in the content of an error that stands for a reply, when its client had left too much
 * unread for another to be kept. Who can send its request again (PX_AGAIN) gets the reply that is
 * on record.
 */
#define PX_UNREAD "px_unread"

/*
 * Ours: behind its subscription to all output a client subscribes to a topic of its own,
 * PX_LISTENER<session>, which it names as "px_listener" in a connection_request. The reply says
 * "px_listens": whether the controller has seen it. Then no output passes the client by.
 */
#define PX_LISTENER "px.listener."
#define PX_LISTENER_SIZE 64 /* of the topic, with a 0 */

/* Default heartbeat period: HeartMonitor.period. */
#define PX_HEARTBEAT_MS 3000

/* An engine says this on stderr; launchers and scripts look for it. */
#define PX_REGISTERED_TEXT "Completed registration with id %d"

#endif
