/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * adapt: the query of those who start engines while tasks wait, and end engines that have nothing
 * to do (protocol.h). They are told what there is; what they make of it is theirs.
 *
 *     worked ── a second after the last look ──▶ PX_ORDER_ADAPT ──▶ PX_NOTE_ADAPT ──▶ figures
 *                                                                    other than those told: a reply
 *
 * Nothing is looked at while nothing happens. Whether an engine may retire is decided in three
 * places, each of which knows its own: here, that it has had no direct request for so long; in the
 * traffic thread, in one step with the end of its tasks, that it has no task and no broadcast; and
 * by the engine, which first does what was under way to it at that moment.
 */
#include "hub.h"

#include "protocol.h"

#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#define LOOK_MS 1000    /* between two looks */
#define SILENT_MS 90000 /* an owner asks three times as often */
#define GONE_MS 60000
#define MOST_ADAPTORS 64
#define MOST_OWNER 64

enum { WORKS = -1, GONE = -2 }; /* in the place of a time */

struct adaptor {
    char owner[MOST_OWNER];
    struct px_msg *asked; /* the request that stands, or NULL */
    json_int_t seen;      /* by that */
    int64_t asked_ms;
    json_int_t serial; /* of the figures */
    char *figures;     /* NULL: none yet */
    json_int_t least, most, joining;
    struct adaptor *prev, *next;
};

struct px_adapt {
    struct adaptor *adaptors;
    size_t count;
    struct px_timer *timer;
    int64_t looked_ms;
};

/* ---- figures ------------------------------------------------------------------ */

/* The number of its set, if the member is this owner's; else NULL. */
static const char *set_of(const struct px_member *member, const char *owner)
{
    const size_t size = strlen(owner);
    if (member->adapt == NULL || strncmp(member->adapt, owner, size) != 0 ||
        member->adapt[size] != ':')
        return NULL;
    return member->adapt + size + 1;
}

static bool is_there(const struct px_member *member)
{
    return member->alive && !member->is_retiring;
}

static bool is_idle(const struct px_member *member)
{
    return member->queue == NULL && member->tasks == NULL && member->broadcasts == 0;
}

/* `since`: the clock's time when an engine had its last work, which stays the same while it is
 * idle; else for how long ago that is. */
static json_int_t idleness(const struct px_member *member, int64_t now_ms, bool since)
{
    if (!is_there(member))
        return GONE;
    if (!is_idle(member))
        return WORKS;
    return since ? member->idle_ms : now_ms - member->idle_ms;
}

/* Those that have left are told of for some time: they may have come and gone between two looks. */
static json_t *describe(const struct px_hub *hub, const char *owner, json_int_t waiting, bool since)
{
    json_t *engines = json_array();
    const int64_t now_ms = px_now_ms();
    for (const struct px_member *member = hub->by_id; member != NULL; member = member->hh.next) {
        const char *set = set_of(member, owner);
        if (set != NULL && (member->alive || now_ms - member->left_ms < GONE_MS))
            json_array_append_new(engines, json_pack("[i, i, I]", member->id, atoi(set),
                                                     idleness(member, now_ms, since)));
    }
    return json_pack("{s:I, s:o}", "waiting", waiting, "engines", engines);
}

static void answer(struct px_hub *hub, struct adaptor *adaptor, json_int_t waiting)
{
    const struct px_request request = {.hub = hub, .msg = adaptor->asked};
    json_t *content = describe(hub, adaptor->owner, waiting, false);
    json_object_set_new(content, "status", json_string("ok"));
    json_object_set_new(content, "serial", json_integer(adaptor->serial));
    px_request_reply(&request, PX_ADAPT_REPLY, content, NULL);
    px_msg_destroy(adaptor->asked);
    adaptor->asked = NULL;
}

/* A serial that no controller before this one has given: the first is the time. */
static void tell(struct px_hub *hub, struct adaptor *adaptor, json_int_t waiting)
{
    json_t *figures = describe(hub, adaptor->owner, waiting, true);
    char *text = json_dumps(figures, JSON_COMPACT);
    json_decref(figures);
    if (adaptor->figures == NULL || strcmp(adaptor->figures, text) != 0)
        adaptor->serial++;
    free(adaptor->figures);
    adaptor->figures = text;
    if (adaptor->asked != NULL && adaptor->seen != adaptor->serial)
        answer(hub, adaptor, waiting);
}

static void free_adaptor(struct px_adapt *adapt, struct adaptor *adaptor)
{
    DL_DELETE(adapt->adaptors, adaptor);
    adapt->count--;
    px_msg_destroy(adaptor->asked);
    free(adaptor->figures);
    free(adaptor);
}

static void forget_silent(struct px_adapt *adapt)
{
    struct adaptor *adaptor, *next;
    DL_FOREACH_SAFE(adapt->adaptors, adaptor, next) {
        if (px_now_ms() - adaptor->asked_ms > SILENT_MS)
            free_adaptor(adapt, adaptor);
    }
}

/* ---- looking ------------------------------------------------------------------ */

/* Takes `uuids`. */
static void look(struct px_hub *hub, char *uuids)
{
    struct px_adapt *adapt = hub->adapt;
    px_loop_cancel(hub->loop, adapt->timer);
    adapt->timer = NULL;
    adapt->looked_ms = px_now_ms();
    px_link_order(hub->link, &(struct px_order){.kind = PX_ORDER_ADAPT, .text = uuids});
}

static void on_look(struct px_loop *loop, void *ctx)
{
    struct px_hub *hub = ctx;
    (void)loop;
    hub->adapt->timer = NULL;
    look(hub, NULL);
}

static void look_soon(struct px_hub *hub)
{
    struct px_adapt *adapt = hub->adapt;
    if (adapt->timer != NULL || adapt->adaptors == NULL)
        return;
    const int64_t left_ms = adapt->looked_ms + LOOK_MS - px_now_ms();
    adapt->timer = px_loop_timer(hub->loop, left_ms > 0 ? left_ms : 0, 0, on_look, hub);
}

void px_adapt_worked(struct px_hub *hub, struct px_member *member)
{
    if (member != NULL && member->adapt != NULL)
        member->idle_ms = px_now_ms();
    if (hub->adapt != NULL)
        look_soon(hub);
}

void px_adapt_note(struct px_hub *hub, const struct px_note *note)
{
    json_t *content = px_json_parse(px_span_of(note->text), NULL);
    const json_t *retired = json_object_get(content, "retired");
    for (size_t i = 0; i < json_array_size(retired); i++) {
        struct px_member *member = px_hub_member(hub, px_id_text(json_array_get(retired, i)));
        if (member == NULL)
            continue;
        member->is_retiring = true;
        px_log(PX_INFO, "engine-retires", "id=%d engine=%s", member->id, member->uuid);
    }
    struct adaptor *adaptor;
    forget_silent(hub->adapt);
    DL_FOREACH(hub->adapt->adaptors, adaptor)
        tell(hub, adaptor, json_integer_value(json_object_get(content, "waiting")));
    json_decref(content);
}

/* ---- requests ----------------------------------------------------------------- */

/* Made if there is none; NULL when there are too many. */
static struct adaptor *find_adaptor(struct px_hub *hub, const char *owner)
{
    if (hub->adapt == NULL)
        hub->adapt = px_alloc(sizeof(*hub->adapt));
    forget_silent(hub->adapt);
    struct adaptor *adaptor;
    DL_FOREACH(hub->adapt->adaptors, adaptor) {
        if (strcmp(adaptor->owner, owner) == 0)
            return adaptor;
    }
    if (hub->adapt->count == MOST_ADAPTORS)
        return NULL;
    adaptor = px_alloc(sizeof(*adaptor));
    strcpy(adaptor->owner, owner);
    adaptor->serial = px_now_ms();
    DL_APPEND(hub->adapt->adaptors, adaptor);
    hub->adapt->count++;
    return adaptor;
}

/* The uuids of those that may retire, as far as it is known here; NULL for none. */
static char *find_retiring(const struct px_hub *hub, const char *owner, const json_t *content)
{
    const json_t *ids = json_object_get(content, "retire");
    const double asked_s = json_number_value(json_object_get(content, "idle_s"));
    const double idle_s = asked_s < 0 ? 0 : asked_s < 1e9 ? asked_s : 1e9;
    const int64_t until_ms = px_now_ms() - (int64_t)(1e3 * idle_s);
    struct px_buf uuids = {0};
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const struct px_member *member = px_hub_target(hub, json_array_get(ids, i));
        if (member != NULL && set_of(member, owner) != NULL && is_there(member) &&
            is_idle(member) && member->idle_ms <= until_ms)
            px_buf_printf(&uuids, "%s\n", member->uuid);
    }
    return uuids.data;
}

void px_on_adapt_request(const struct px_request *request)
{
    struct px_hub *hub = request->hub;
    const char *owner = json_string_value(json_object_get(request->content, "owner"));
    if (owner == NULL || owner[0] == 0 || strlen(owner) >= MOST_OWNER) {
        px_request_fail(request, PX_ADAPT_REPLY, "ValueError", "the owner has no name");
        return;
    }
    if (!px_request_has_books(request, PX_ADAPT_REPLY))
        return;
    struct adaptor *adaptor = find_adaptor(hub, owner);
    if (adaptor == NULL) {
        px_request_fail(request, PX_ADAPT_REPLY, "RuntimeError", "too many start engines here");
        return;
    }
    px_msg_destroy(adaptor->asked);
    adaptor->asked = px_msg_copy(request->msg);
    adaptor->asked_ms = px_now_ms();
    adaptor->seen = json_integer_value(json_object_get(request->content, "seen"));
    adaptor->least = json_integer_value(json_object_get(request->content, "min"));
    adaptor->most = json_integer_value(json_object_get(request->content, "max"));
    adaptor->joining = json_integer_value(json_object_get(request->content, "joining"));
    char *uuids = find_retiring(hub, owner, request->content);
    if (uuids != NULL || adaptor->figures == NULL || adaptor->seen != adaptor->serial)
        look(hub, uuids);
}

/* ---- status, end -------------------------------------------------------------- */

json_t *px_adapt_list(const struct px_hub *hub)
{
    json_t *list = json_array();
    struct adaptor *adaptor = NULL;
    if (hub->adapt != NULL)
        forget_silent(hub->adapt);
    DL_FOREACH(hub->adapt ? hub->adapt->adaptors : NULL, adaptor)
        json_array_append_new(list, json_pack("{s:s, s:I, s:I, s:I}", "owner", adaptor->owner,
                                              "min", adaptor->least, "max", adaptor->most,
                                              "joining", adaptor->joining));
    return list;
}

void px_adapt_destroy(struct px_adapt *adapt)
{
    while (adapt != NULL && adapt->adaptors != NULL)
        free_adaptor(adapt, adapt->adaptors);
    free(adapt);
}
