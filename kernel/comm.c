/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * comm: which comms are open, with their targets.
 *
 * Only comm_open and comm_close of either side change it. The language keeps the comms
 * themselves; this copy lets comm_info_request be answered while it is busy, which is when a
 * front end that reconnects asks.
 */
#include "core.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <uthash.h>

/* A front end may open comms without end; more than this are not listed. */
#define MOST_COMMS 65536

struct comm {
    UT_hash_handle hh;
    char *target;
    char id[];
};

struct px_comms {
    pthread_mutex_t lock;
    struct comm *by_id;
};

struct px_comms *px_comms_create(void)
{
    struct px_comms *comms = px_alloc(sizeof *comms);
    pthread_mutex_init(&comms->lock, NULL);
    return comms;
}

static void forget(struct px_comms *comms, struct comm *comm)
{
    HASH_DEL(comms->by_id, comm);
    free(comm->target);
    free(comm);
}

void px_comms_destroy(struct px_comms *comms)
{
    if (!comms)
        return;
    struct comm *comm, *next;
    HASH_ITER(hh, comms->by_id, comm, next)
        forget(comms, comm);
    pthread_mutex_destroy(&comms->lock);
    free(comms);
}

static void comm_opened(struct px_comms *comms, const char *id, const char *target)
{
    if (!target || HASH_COUNT(comms->by_id) >= MOST_COMMS)
        return;
    struct comm *comm = px_alloc(sizeof *comm + strlen(id) + 1);
    strcpy(comm->id, id);
    comm->target = px_strdup(target);
    HASH_ADD_STR(comms->by_id, id, comm);
}

void px_comms_follow(struct px_comms *comms, enum px_publication what, struct px_span content)
{
    if (what != PX_COMM_OPEN && what != PX_COMM_CLOSE)
        return;
    json_t *json = px_json_parse(content, NULL);
    const char *id = json_string_value(json_object_get(json, "comm_id"));
    if (id) {
        pthread_mutex_lock(&comms->lock);
        struct comm *known;
        HASH_FIND_STR(comms->by_id, id, known);
        if (known)
            forget(comms, known);
        if (what == PX_COMM_OPEN)
            comm_opened(comms, id, json_string_value(json_object_get(json, "target_name")));
        pthread_mutex_unlock(&comms->lock);
    }
    json_decref(json);
}

void px_comms_list(struct px_comms *comms, const char *target, struct px_buf *out)
{
    const char *separator = "";
    px_buf_text(out, "{");
    pthread_mutex_lock(&comms->lock);
    for (struct comm *comm = comms->by_id; comm; comm = comm->hh.next) {
        if (target && strcmp(target, comm->target) != 0)
            continue;
        px_buf_text(out, separator);
        px_buf_json_string(out, comm->id, strlen(comm->id));
        px_buf_text(out, ": {\"target_name\": ");
        px_buf_json_string(out, comm->target, strlen(comm->target));
        px_buf_text(out, "}");
        separator = ", ";
    }
    pthread_mutex_unlock(&comms->lock);
    px_buf_text(out, "}");
}
