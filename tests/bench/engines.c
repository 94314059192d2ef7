/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * engines: see engines.h. What ZMTP 3.0 asks of a peer without security:
 *
 *     greeting   64 bytes: signature, version 3.0, mechanism NULL
 *     READY      a command with Socket-Type and Identity
 *     frames     flags (1 more, 2 long, 4 command), size in 1 or 8 bytes, body
 */
#include "engines.h"

#include "load.h"
#include "protocol.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define GREETING 64
#define READ_SIZE (1u << 20)
#define KEPT_FRAME (64u << 10) /* of a larger frame nothing is kept */
#define MOST_EVENTS 256
#define AT_ONCE 64 /* registrations under way */

enum { MORE = 1, LONG = 2, COMMAND = 4 };
enum leg { REGISTRAR, TASK, MUX, BROADCAST, PING, PONG, LEGS };

struct connection {
    struct bench_engine *engine;
    enum leg leg;
    int fd;
    size_t greeting;     /* bytes of it that are still to come */
    bool ready;          /* the peer's READY has come: not before may messages be sent */
    bool left;           /* it is to be closed */
    struct px_buf in;    /* bytes not parsed yet */
    uint64_t skip;       /* bytes of a large frame that are still to come */
    bool skip_more;      /* that frame is not its message's last */
    struct px_buf out;   /* bytes the socket did not take */
    struct px_msg *part; /* frames of a message so far */
};

struct bench_engine {
    struct bench_engines *all;
    struct connection legs[LEGS];
    int id;
    char uuid[PX_ID_SIZE];
};

int bench_engine_id(const struct bench_engines *engines, int index)
{
    return engines->list[index].id;
}

const char *bench_engine_uuid(const struct bench_engines *engines, int index)
{
    return engines->list[index].uuid;
}

/* ---- sending --------------------------------------------------------------- */

static void watch(const struct connection *to, int operation)
{
    struct epoll_event event = {.events = EPOLLIN | (to->out.size ? EPOLLOUT : 0),
                                .data.ptr = (void *)to};
    if (epoll_ctl(to->engine->all->epoll, operation, to->fd, &event) != 0)
        px_die(1, "epoll: %s", strerror(errno));
}

static void flush(struct connection *to)
{
    ssize_t sent = send(to->fd, to->out.data, to->out.size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN)
        px_die(1, "a connection to the controller broke: %s", strerror(errno));
    if (sent > 0) {
        memmove(to->out.data, to->out.data + sent, to->out.size - (size_t)sent);
        to->out.size -= (size_t)sent;
    }
}

static void put_frame(struct px_buf *out, struct px_span body, unsigned flags)
{
    unsigned char head[9] = {(unsigned char)(flags | (body.size > 255 ? LONG : 0))};
    for (int i = 0; i < 8 && body.size > 255; i++)
        head[1 + i] = (unsigned char)((uint64_t)body.size >> (56 - 8 * i));
    if (body.size <= 255)
        head[1] = (unsigned char)body.size;
    px_buf_append(out, head, body.size > 255 ? 9 : 2);
    px_buf_append(out, body.data, body.size);
}

/* Takes `msg`. What is sent goes out when the batch of events is done. */
static void send_message(struct connection *to, struct px_msg *msg)
{
    for (size_t i = 0; i < px_msg_count(msg); i++)
        put_frame(&to->out, px_msg_frame(msg, i), i + 1 < px_msg_count(msg) ? MORE : 0);
    px_msg_destroy(msg);
}

static void put_property(struct px_buf *out, const char *name, const char *value)
{
    char sizes[5] = {(char)strlen(name), 0, 0, 0, (char)strlen(value)};
    px_buf_append(out, sizes, 1);
    px_buf_text(out, name);
    px_buf_append(out, sizes + 1, 4);
    px_buf_text(out, value);
}

static void open_leg(struct bench_engine *engine, enum leg leg, const char *type, int port)
{
    struct connection *to = &engine->legs[leg];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    static const char greeting[GREETING] = "\xff\0\0\0\0\0\0\0\0\x7f\x03\0NULL";
    struct px_buf ready = {0};
    int yes = 1;
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    *to = (struct connection){.engine = engine, .leg = leg, .greeting = GREETING};
    to->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (to->fd < 0 || connect(to->fd, (struct sockaddr *)&address, sizeof(address)) != 0)
        px_die(1, "cannot connect to port %d: %s", port, strerror(errno));
    setsockopt(to->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
    px_buf_append(&to->out, greeting, GREETING);
    px_buf_append(&ready, "\5READY", 6);
    put_property(&ready, "Socket-Type", type);
    put_property(&ready, "Identity", engine->uuid);
    put_frame(&to->out, px_buf_span(&ready), COMMAND);
    px_buf_fini(&ready);
    flush(to);
    watch(to, EPOLL_CTL_ADD);
    if (leg == PING)
        put_frame(&to->out, (struct px_span){"\1", 1}, 0); /* subscribes to all */
}

/* ---- what engines do ------------------------------------------------------- */

static void begin(struct bench_engines *engines, int index)
{
    struct bench_engine *engine = &engines->list[index];
    engine->all = engines;
    px_id_random(engine->uuid);
    open_leg(engine, REGISTRAR, "DEALER", engines->file.registration);
    char *content =
        px_format("{\"uuid\": \"%s\", \"px\": {\"features\": [\"recall\"]}}", engine->uuid);
    struct px_draft draft = {.type = PX_REGISTRATION_REQUEST, .content = px_span_of(content)};
    send_message(&engine->legs[REGISTRAR], px_session_build(engines->session, &draft));
    free(content);
}

/* The number in a registration_reply. */
static int read_id(struct px_msg *msg)
{
    static const char *const key = "id";
    struct px_span id;
    struct px_error err;
    bench_must(px_msg_locate(msg, &err), &err);
    if (px_scan(px_msg_content(msg), &key, &id, 1) != 0 || id.size == 0)
        px_die(1, "an engine was not registered");
    return atoi(id.data);
}

/* The connection to the hub has done its work: descriptors are what there is least of. */
static void on_registered(struct bench_engine *engine)
{
    struct bench_engines *engines = engine->all;
    const struct px_cluster_connection *file = &engines->file;
    static const enum leg legs[] = {TASK, MUX, BROADCAST};
    const int leaf = file->broadcast[(size_t)engine->id % file->broadcast_count];
    const int ports[] = {file->task, file->mux, leaf};
    for (size_t i = 0; i < PX_COUNT(legs); i++) {
        if (engines->work & 1u << i)
            open_leg(engine, legs[i], "ROUTER", ports[i]);
    }
    open_leg(engine, PONG, "DEALER", file->hb_pong);
    open_leg(engine, PING, "SUB", file->hb_ping);
    shutdown(engine->legs[REGISTRAR].fd, SHUT_RDWR);
    engine->legs[REGISTRAR].left = true;
    int next = atomic_fetch_add(&engines->registered, 1) + AT_ONCE;
    if (next < engines->count)
        begin(engines, next);
}

static void answer(struct connection *to, const struct px_msg *msg)
{
    static const char *const keys[] = {"is_coalescing", "original_msg_id"};
    struct px_span values[2] = {{0}}, coalescing = PX_SPAN("false"), original = PX_SPAN("\"\"");
    struct px_buf metadata = {0};
    char date[PX_DATE_SIZE];
    px_date_now(date);
    if (to->leg == BROADCAST && px_scan(px_msg_metadata(msg), keys, values, 2) == 0) {
        coalescing = values[0].data ? values[0] : coalescing;
        original = values[1].data ? values[1] : original;
    }
    px_buf_printf(&metadata,
                  "{\"started\": \"%s\", \"dependencies_met\": true, \"engine\": \"%s\", "
                  "\"is_broadcast\": %s, \"is_coalescing\": %.*s, \"original_msg_id\": %.*s, "
                  "\"status\": \"ok\"}",
                  date, to->engine->uuid, to->leg == BROADCAST ? "true" : "false",
                  (int)coalescing.size, coalescing.data, (int)original.size, original.data);
    struct px_draft draft = {.idents_of = msg,
                             .type = PX_APPLY_REPLY,
                             .parent = px_msg_header(msg),
                             .metadata = px_buf_span(&metadata),
                             .content = PX_SPAN("{\"status\": \"ok\"}")};
    struct px_msg *reply = px_session_build(to->engine->all->session, &draft);
    px_msg_append(reply, "\x80\x04K*.", 5);
    send_message(to, reply);
    px_buf_fini(&metadata);
    atomic_fetch_add(&to->engine->all->answered, 1);
}

/* Takes `msg`. */
static void on_message(struct connection *from, struct px_msg *msg)
{
    struct bench_engines *engines = from->engine->all;
    struct px_error err;
    if (from->leg == REGISTRAR) {
        from->engine->id = read_id(msg);
        on_registered(from->engine);
    } else if (from->leg == PING) {
        send_message(&from->engine->legs[PONG], px_msg_copy(msg));
        if (from->engine->legs[PONG].ready)
            flush(&from->engine->legs[PONG]);
        atomic_fetch_add(&engines->beats, 1);
    } else {
        if (px_msg_locate(msg, &err) != 0 || px_session_verify(engines->session, msg, &err) != 0)
            px_die(1, "an engine was sent something wrong: %s", err.text);
        /* From nobody comes a recall: of tasks that have all been answered. */
        if (px_msg_ident_count(msg) > 0)
            answer(from, msg);
    }
    px_msg_destroy(msg);
}

/* ---- receiving ------------------------------------------------------------- */

static void take_frame(struct connection *from, struct px_span body, bool more)
{
    if (from->part == NULL)
        from->part = px_msg_create();
    px_msg_append(from->part, body.data, body.size);
    if (more)
        return;
    struct px_msg *msg = from->part;
    from->part = NULL;
    on_message(from, msg);
}

/* The size of the next frame's head, 0 when it is not whole yet. */
static size_t read_head(const unsigned char *at, size_t size, uint64_t *body)
{
    size_t head = size > 0 && (at[0] & LONG) ? 9 : 2;
    if (size < head)
        return 0;
    *body = 0;
    for (size_t i = 1; i < head; i++)
        *body = *body << 8 | at[i];
    return head;
}

/* One step over what has arrived: its length, 0 when more must come. */
static size_t parse(struct connection *from, const char *at, size_t size)
{
    uint64_t body;
    if (from->greeting > 0 || from->skip > 0) {
        size_t most = from->greeting > 0 ? from->greeting : from->skip, step;
        step = size < most ? size : most;
        if (from->greeting > 0)
            from->greeting -= step;
        else if ((from->skip -= step) == 0)
            take_frame(from, (struct px_span){"", 0}, from->skip_more);
        return step;
    }
    size_t head = read_head((const unsigned char *)at, size, &body);
    bool more = size > 0 && (at[0] & MORE) != 0;
    if (head == 0 || (body <= KEPT_FRAME && size < head + body))
        return 0;
    if (body > KEPT_FRAME) {
        from->skip = body;
        from->skip_more = more;
        return head;
    }
    if ((at[0] & COMMAND) != 0)
        from->ready = true;
    else
        take_frame(from, (struct px_span){at + head, (size_t)body}, more);
    return head + (size_t)body;
}

static void on_readable(struct connection *from, char *scratch)
{
    if (from->left) {
        close(from->fd);
        return;
    }
    ssize_t got = recv(from->fd, scratch, READ_SIZE, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0)
        px_die(1, "the controller closed connection %d of an engine", (int)from->leg);
    const char *at = scratch;
    size_t size = (size_t)got, step;
    if (from->in.size > 0) {
        px_buf_append(&from->in, scratch, size);
        at = from->in.data;
        size = from->in.size;
    }
    while (size > 0 && (step = parse(from, at, size)) > 0) {
        at += step;
        size -= step;
    }
    struct px_buf rest = {0};
    px_buf_append(&rest, at, size);
    px_buf_fini(&from->in);
    from->in = rest;
}

static void serve(struct connection *leg, unsigned events, char *scratch)
{
    bool was_full = leg->out.size > 0 && leg->ready;
    if (events & (EPOLLIN | EPOLLHUP))
        on_readable(leg, scratch);
    if (leg->ready && leg->out.size > 0)
        flush(leg);
    if (leg->ready && (was_full || leg->out.size > 0))
        watch(leg, EPOLL_CTL_MOD);
}

static void *engines_thread(void *ctx)
{
    struct bench_engines *engines = ctx;
    struct epoll_event events[MOST_EVENTS];
    char *scratch = px_alloc(READ_SIZE);
    for (int i = 0; i < AT_ONCE && i < engines->count; i++)
        begin(engines, i);
    for (;;) {
        int count = epoll_wait(engines->epoll, events, MOST_EVENTS, -1);
        for (int i = 0; i < count; i++)
            serve(events[i].data.ptr, events[i].events, scratch);
    }
    return NULL;
}

void bench_engines_start(struct bench_engines *engines)
{
    struct px_error err;
    pthread_t thread;
    engines->list = px_alloc((size_t)engines->count * sizeof(*engines->list));
    engines->epoll = epoll_create1(EPOLL_CLOEXEC);
    engines->session =
        px_session_create(engines->file.key, engines->file.signature_scheme, NULL, &err);
    if (engines->session == NULL || engines->epoll < 0)
        px_die(1, "engines: %s", err.text);
    if (pthread_create(&thread, NULL, engines_thread, engines) != 0)
        px_die(1, "cannot start a thread");
}
