/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * traffic: the traffic thread. Makes relays, task queue, broadcast and heart on one loop, keeps
 * the roster of registered engines, and carries out what the hub orders.
 *
 * The hub orders an engine up before anybody hears of it, but a client may be quicker than
 * the doorbell's turn in the loop; so before an engine is called unknown, orders are looked at.
 */
#include "controller.h"

#include "schedule.h"

#include <stdlib.h>
#include <string.h>
#include <uthash.h>

struct px_engine_entry {
    int id;
    bool adapts;       /* PX_FEATURE_ADAPT */
    size_t broadcasts; /* of one that adapts: that it was sent and has not answered */
    UT_hash_handle hh;
    char uuid[];
};

struct px_traffic {
    struct px_shared shared;
    struct px_engine_entry *roster;
    struct px_relay *mux, *control;
    struct px_iopub *iopub;
    struct px_tasks *tasks; /* one of these two */
    struct px_pure *pure;
    struct px_broadcast *broadcast;
    struct px_heart *heart;
    size_t adapting; /* engines with PX_FEATURE_ADAPT */
    bool in_orders;
};

static struct px_engine_entry *find_entry(const struct px_traffic *traffic, struct px_span uuid)
{
    struct px_engine_entry *entry;
    HASH_FIND(hh, traffic->roster, uuid.data, uuid.size, entry);
    return entry;
}

/* ---- orders ---------------------------------------------------------------- */

static void on_engine_up(struct px_traffic *traffic, struct px_order *order)
{
    struct px_span uuid = px_span_of(order->uuid);
    if (find_entry(traffic, uuid) != NULL)
        return;
    struct px_engine_entry *entry = px_alloc(sizeof(*entry) + uuid.size + 1);
    memcpy(entry->uuid, uuid.data, uuid.size);
    entry->id = order->id;
    entry->adapts = order->features & PX_FEATURE_ADAPT;
    traffic->adapting += entry->adapts;
    HASH_ADD_KEYPTR(hh, traffic->roster, entry->uuid, uuid.size, entry);
    if (traffic->tasks != NULL)
        px_tasks_engine_up(traffic->tasks, uuid, order->features);
}

static void on_engine_down(struct px_traffic *traffic, struct px_order *order)
{
    struct px_span uuid = px_span_of(order->uuid);
    struct px_engine_entry *entry = find_entry(traffic, uuid);
    px_heart_forget(traffic->heart, uuid);
    if (entry == NULL)
        return;
    traffic->adapting -= entry->adapts;
    HASH_DEL(traffic->roster, entry);
    free(entry);
    px_relay_engine_down(traffic->mux, uuid);
    px_relay_engine_down(traffic->control, uuid);
    px_broadcast_engine_down(traffic->broadcast, uuid);
    if (traffic->tasks != NULL)
        px_tasks_engine_down(traffic->tasks, order);
}

static void on_expect(struct px_traffic *traffic, struct px_order *order)
{
    px_heart_expect(traffic->heart, px_span_of(order->uuid));
    if (traffic->tasks != NULL && (order->features & PX_FEATURE_AGAIN))
        px_tasks_expect(traffic->tasks, px_span_of(order->uuid));
}

/* It may have been heard, and ignored, before it was registered, or when that took too long. */
static void on_expect_news(struct px_traffic *traffic, struct px_order *order)
{
    px_heart_forget(traffic->heart, px_span_of(order->uuid));
}

static void on_submit(struct px_traffic *traffic, struct px_order *order)
{
    if (traffic->tasks != NULL)
        px_tasks_submit(traffic->tasks, order->msg);
    else
        px_pure_submit(traffic->pure, order->msg);
    order->msg = NULL;
    px_link_flush(traffic->shared.link);
}

static void on_why(struct px_traffic *traffic, struct px_order *order)
{
    struct px_buf answers = {0};
    px_buf_text(&answers, "{");
    if (traffic->tasks != NULL)
        px_tasks_why(traffic->tasks, order->text, &answers);
    px_buf_text(&answers, "}");
    px_link_answer(traffic->shared.link, PX_NOTE_WHY, order->msg, answers.data);
    order->msg = NULL;
}

/* Ordered where books are kept, as all that follows without a look at `tasks`. */
static void on_abort(struct px_traffic *traffic, struct px_order *order)
{
    px_tasks_abort(traffic->tasks, order->text);
}

static void on_adopt(struct px_traffic *traffic, struct px_order *order)
{
    if (traffic->tasks != NULL)
        px_tasks_adopt(traffic->tasks, px_span_of(order->uuid), order->msg);
    else
        px_pure_submit(traffic->pure, order->msg);
    order->msg = NULL;
    px_link_flush(traffic->shared.link);
}

static void on_probe(struct px_traffic *traffic, struct px_order *order)
{
    if (traffic->tasks != NULL)
        px_tasks_probe(traffic->tasks, px_span_of(order->uuid));
}

static void on_probe_direct(struct px_traffic *traffic, struct px_order *order)
{
    px_relay_probe(traffic->mux, px_span_of(order->uuid), (unsigned)order->id);
}

static void on_answer(struct px_traffic *traffic, struct px_order *order)
{
    px_relay_answer(traffic->mux, order->msg);
    order->msg = NULL;
    px_link_flush(traffic->shared.link);
}

static void on_answer_task(struct px_traffic *traffic, struct px_order *order)
{
    px_tasks_answer(traffic->tasks, order->msg);
    order->msg = NULL;
}

/* "s<msg_id> 0 <uuid> 0", or with an f of those that failed, again and again. */
static void on_remember(struct px_traffic *traffic, struct px_order *order)
{
    struct px_span list = px_msg_frame(order->msg, 0);
    const char *at = list.data, *end = list.data + list.size;
    while (traffic->tasks != NULL && at < end) {
        struct px_span msg_id = px_span_of(at + 1);
        struct px_span uuid = px_span_of(msg_id.data + msg_id.size + 1);
        px_tasks_remember(traffic->tasks, msg_id, *at == 's', uuid);
        at = uuid.data + uuid.size + 1;
    }
}

static void on_return(struct px_traffic *traffic, struct px_order *order)
{
    px_link_answer(traffic->shared.link, PX_NOTE_QUERY, order->msg, NULL);
    order->msg = NULL;
}

static void on_report(struct px_traffic *traffic, struct px_order *order)
{
    json_t *report = json_pack("{s:[]}", "sockets");
    px_relay_report(traffic->mux, report);
    px_relay_report(traffic->control, report);
    px_iopub_report(traffic->iopub, report);
    px_broadcast_report(traffic->broadcast, report);
    if (traffic->tasks != NULL)
        px_tasks_report(traffic->tasks, report);
    else
        px_pure_report(traffic->pure, report);
    px_heart_report(traffic->heart, report);
    const struct px_link *link = traffic->shared.link;
    json_object_set_new(report, "link",
                        json_pack("{s:I, s:I, s:I, s:I}", "backlog",
                                  (json_int_t)atomic_load(&link->backlog), "backlog_bytes",
                                  (json_int_t)atomic_load(&link->backlog_bytes), "lost",
                                  (json_int_t)link->lost, "paces", (json_int_t)link->paces));
    px_link_answer(traffic->shared.link, PX_NOTE_REPORT, order->msg, json_dumps(report, 0));
    order->msg = NULL;
    json_decref(report);
}

/* Of what it was sent directly the hub knows; of what that does not know yet the engine does. */
static bool retire(struct px_traffic *traffic, struct px_span uuid)
{
    const struct px_engine_entry *entry = find_entry(traffic, uuid);
    if (entry == NULL || entry->broadcasts > 0 || !px_tasks_retire(traffic->tasks, uuid))
        return false;
    px_relay_retire(traffic->mux, uuid);
    return true;
}

static void on_adapt(struct px_traffic *traffic, struct px_order *order)
{
    struct px_buf answer = {0};
    px_buf_printf(&answer, "{\"waiting\": %zu, \"retired\": [", px_tasks_wanting(traffic->tasks));
    const char *comma = "";
    for (const char *at = order->text, *end; at && (end = strchr(at, '\n')); at = end + 1) {
        const struct px_span uuid = {at, (size_t)(end - at)};
        if (!retire(traffic, uuid))
            continue;
        px_buf_text(&answer, comma);
        px_buf_json_string(&answer, uuid.data, uuid.size);
        comma = ", ";
    }
    px_buf_text(&answer, "]}");
    px_link_answer(traffic->shared.link, PX_NOTE_ADAPT, NULL, answer.data);
}

static void on_stop(struct px_traffic *traffic, struct px_order *order)
{
    (void)order;
    px_relay_drain(traffic->mux);
    if (traffic->tasks != NULL)
        px_tasks_drain(traffic->tasks);
    px_link_flush(traffic->shared.link);
    px_loop_stop(traffic->shared.loop);
}

static void (*const order_handlers[PX_ORDER_KINDS])(struct px_traffic *, struct px_order *) = {
    [PX_ORDER_ENGINE_UP] = on_engine_up,
    [PX_ORDER_ENGINE_DOWN] = on_engine_down,
    [PX_ORDER_EXPECT_NEWS] = on_expect_news,
    [PX_ORDER_EXPECT] = on_expect,
    [PX_ORDER_SUBMIT] = on_submit,
    [PX_ORDER_WHY] = on_why,
    [PX_ORDER_ABORT] = on_abort,
    [PX_ORDER_REMEMBER] = on_remember,
    [PX_ORDER_ADOPT] = on_adopt,
    [PX_ORDER_PROBE] = on_probe,
    [PX_ORDER_PROBE_DIRECT] = on_probe_direct,
    [PX_ORDER_ANSWER] = on_answer,
    [PX_ORDER_ANSWER_TASK] = on_answer_task,
    [PX_ORDER_REPORT] = on_report,
    [PX_ORDER_ADAPT] = on_adapt,
    [PX_ORDER_RETURN] = on_return,
    [PX_ORDER_STOP] = on_stop,
};

/*
 * Carrying out an order may send, and sending may ask who is registered: not again then. The task
 * queue sends only to engines that are in the roster, so it is never interrupted by an order.
 */
static void take_orders(struct px_traffic *traffic)
{
    struct px_order *order;
    if (traffic->in_orders)
        return;
    traffic->in_orders = true;
    while ((order = px_doorbell_take(traffic->shared.link->to_traffic)) != NULL) {
        order_handlers[order->kind](traffic, order);
        px_order_free(order);
    }
    traffic->in_orders = false;
}

static void on_bell(struct px_loop *loop, void *ctx)
{
    (void)loop;
    take_orders(ctx);
}

bool px_traffic_knows(struct px_traffic *traffic, struct px_span uuid)
{
    if (find_entry(traffic, uuid) != NULL)
        return true;
    take_orders(traffic);
    return find_entry(traffic, uuid) != NULL;
}

void px_traffic_broadcast(struct px_traffic *traffic, struct px_span uuid, int change)
{
    struct px_engine_entry *entry = traffic->adapting > 0 ? find_entry(traffic, uuid) : NULL;
    if (entry == NULL || !entry->adapts || (change < 0 && entry->broadcasts == 0))
        return;
    entry->broadcasts += (size_t)change;
    px_link_note_text(traffic->shared.link, PX_NOTE_BROADCAST, uuid,
                      change > 0 ? PX_SPAN("+") : PX_SPAN("-"));
}

/* ---- bundles --------------------------------------------------------------- */

/* The pure scheme's DEALER tells engines from one another by nothing, and posts to none. */
static void take_bundles(const struct px_sockets *sockets)
{
    px_socket_take_bundles(sockets->mux_in);
    px_socket_take_bundles(sockets->mux_out);
    px_socket_take_bundles(sockets->task_in);
    px_socket_take_bundles(sockets->task_out);
}

static void on_settle(struct px_loop *loop, void *ctx)
{
    (void)loop;
    const struct px_sockets *sockets = ctx;
    px_socket_flush(sockets->task_out);
    px_socket_flush(sockets->task_in);
    px_socket_flush(sockets->mux_out);
    px_socket_flush(sockets->mux_in);
}

/* ---- create, run, destroy -------------------------------------------------- */

static void make_parts(struct px_traffic *traffic, const struct px_traffic_config *config)
{
    const struct px_shared *shared = &traffic->shared;
    struct px_sockets *sockets = config->sockets;
    traffic->heart =
        px_heart_create(shared, sockets->ping, sockets->pong, config->ping_ms, config->max_misses);
    traffic->control =
        px_relay_create(shared, "control", sockets->control_in, sockets->control_out, 0, false);
    traffic->mux =
        px_relay_create(shared, "mux", sockets->mux_in, sockets->mux_out, sockets->mux_first, true);
    traffic->broadcast = px_broadcast_create(shared, sockets->broadcast_in, sockets->broadcast_out);
    if (px_scheme_is_pure(config->scheme))
        traffic->pure = px_pure_create(shared, sockets->task_in, sockets->task_out);
    else
        traffic->tasks = px_tasks_create(shared, sockets->task_in, sockets->task_out,
                                         sockets->task_first, config->scheme, config->hwm);
    traffic->iopub = px_iopub_create(shared, sockets->iopub_in, sockets->iopub_out);
    take_bundles(sockets);
    px_loop_settle(shared->loop, on_settle, sockets);
}

struct px_traffic *px_traffic_create(const struct px_traffic_config *config, struct px_error *err)
{
    struct px_traffic *traffic = px_alloc(sizeof(*traffic));
    traffic->shared.traffic = traffic;
    traffic->shared.link = config->link;
    traffic->shared.return_ms = config->restored ? px_now_ms() + PX_ROUTE_PATIENCE_MS : 0;
    traffic->shared.loop = px_loop_create();
    traffic->shared.session = px_session_create(config->key, config->signature_scheme, NULL, err);
    if (traffic->shared.session == NULL) {
        px_traffic_destroy(traffic);
        return NULL;
    }
    px_link_attach(config->link, traffic->shared.loop);
    px_loop_fd(traffic->shared.loop, px_doorbell_fd(config->link->to_traffic), on_bell, traffic);
    make_parts(traffic, config);
    return traffic;
}

int px_traffic_run(struct px_traffic *traffic, struct px_error *err)
{
    return px_loop_run(traffic->shared.loop, err);
}

void px_traffic_destroy(struct px_traffic *traffic)
{
    if (traffic == NULL)
        return;
    px_relay_destroy(traffic->mux);
    px_relay_destroy(traffic->control);
    px_iopub_destroy(traffic->iopub);
    px_tasks_destroy(traffic->tasks);
    px_pure_destroy(traffic->pure);
    px_broadcast_destroy(traffic->broadcast);
    px_heart_destroy(traffic->heart);
    struct px_engine_entry *entry, *next;
    HASH_ITER(hh, traffic->roster, entry, next) {
        HASH_DEL(traffic->roster, entry);
        free(entry);
    }
    px_session_destroy(traffic->shared.session);
    px_link_attach(traffic->shared.link, NULL);
    px_loop_destroy(traffic->shared.loop);
    free(traffic);
}
