/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * monitor: what the hub learns from copies of the traffic (ipyparallel, controller/hub.py). One
 * function a kind of note. Output on iopub may arrive before the request that it belongs to, and a
 * request may come twice (resubmission); records merge what comes, in any order.
 */
#include "hub.h"

#include <string.h>

/* ---- records --------------------------------------------------------------- */

static void store_request(struct px_hub *hub, const struct px_msg *msg, struct px_span msg_id,
                          const char *queue, struct px_span engine)
{
    struct px_record *record = px_db_want(hub->db, msg_id);
    if (record == NULL)
        return;
    record->queue = queue;
    px_record_set_engine(record, engine);
    px_hub_changed(hub, record);
    if (record->request != NULL)
        return; /* a resubmission that the hub itself has recorded */
    record->request = px_msg_copy(msg);
    px_db_resize(hub->db, record, 0, px_msg_bytes(msg));
}

static void store_reply(struct px_hub *hub, const struct px_note *note, struct px_span msg_id,
                        struct px_span engine)
{
    struct px_record *record = px_db_get(hub->db, msg_id);
    if (record == NULL)
        return;
    px_date_now(record->received);
    px_hub_changed(hub, record);
    px_record_set_engine(record, engine);
    if (note->no_body || !px_db_may_keep(hub->db, note->msg)) {
        if (record->reply == NULL)
            px_record_lose(record, engine, "ResultNotKept",
                           note->no_body ? "the task has ended, but the hub was too far behind to "
                                           "keep its result"
                                         : "the task has ended, but its result is too large for "
                                           "the task database");
        return;
    }
    size_t before = record->reply ? px_msg_bytes(record->reply) : 0;
    px_msg_destroy(record->reply);
    record->reply = px_msg_copy(note->msg);
    px_db_resize(hub->db, record, before, px_msg_bytes(note->msg));
}

/* ---- mux ------------------------------------------------------------------- */

static void on_mux_request(struct px_hub *hub, const struct px_note *note)
{
    struct px_header header;
    struct px_member *member = px_hub_member(hub, px_msg_ident(note->msg, 0));
    if (member != NULL && px_header_scan(px_msg_header(note->msg), &header, NULL) == 0)
        px_monitor_request(hub, note, &header, member);
}

void px_monitor_request(struct px_hub *hub, const struct px_note *note,
                        const struct px_header *header, struct px_member *member)
{
    store_request(hub, note->msg, header->msg_id, "mux", px_span_of(member->uuid));
    px_hub_book(hub, header->msg_id, member, true);
}

void px_monitor_reply(struct px_hub *hub, const struct px_note *note)
{
    struct px_span msg_id = px_scan_member(px_msg_parent(note->msg), "msg_id");
    struct px_job *job = px_hub_job(hub, msg_id);
    if (job != NULL) {
        if (job->member != NULL)
            job->member->completed++;
        px_hub_unbook(hub, job);
        px_history_set(hub->finished, msg_id, PX_SUCCEEDED, 0);
    } else if (px_history_get(hub->finished, msg_id, NULL) == PX_UNKNOWN) {
        if (hub->settings->restore && msg_id.size > 0 && msg_id.size <= PX_MAX_MSG_ID)
            px_history_set(hub->finished, msg_id, PX_SUCCEEDED, 0); /* it may be sent again */
        return;
    }
    store_reply(hub, note, msg_id, px_msg_ident(note->msg, 1));
}

/* ---- task ------------------------------------------------------------------ */

static void on_task_request(struct px_hub *hub, const struct px_note *note)
{
    struct px_header header;
    if (px_header_scan(px_msg_header(note->msg), &header, NULL) != 0)
        return;
    store_request(hub, note->msg, header.msg_id, "task", (struct px_span){0});
    px_hub_book(hub, header.msg_id, NULL, false);
}

static void on_task_destination(struct px_hub *hub, const struct px_note *note)
{
    struct px_span msg_id = px_span_of(note->text);
    struct px_span uuid = px_span_of(note->text + msg_id.size + 1);
    struct px_member *member = px_hub_member(hub, uuid);
    struct px_record *record = px_db_get(hub->db, msg_id);
    if (member != NULL && px_hub_job(hub, msg_id) != NULL)
        px_hub_book(hub, msg_id, member, false);
    if (record == NULL)
        return;
    px_record_set_engine(record, uuid);
    px_hub_changed(hub, record);
}

static void on_task_reply(struct px_hub *hub, const struct px_note *note)
{
    struct px_span msg_id = px_scan_member(px_msg_parent(note->msg), "msg_id");
    struct px_span engine = px_scan_member(px_msg_metadata(note->msg), "engine");
    struct px_span status = px_scan_member(px_msg_metadata(note->msg), "status");
    struct px_job *job = px_hub_job(hub, msg_id);
    if (job == NULL)
        return;
    struct px_member *member = px_hub_member(hub, engine);
    if (member != NULL && !px_span_equal(status, "aborted"))
        member->completed++;
    px_hub_unbook(hub, job);
    px_history_set(hub->finished, msg_id, PX_SUCCEEDED, 0);
    store_reply(hub, note, msg_id, engine);
}

/* ---- iopub ----------------------------------------------------------------- */

static void append_text(struct px_hub *hub, struct px_record *record, struct px_buf *buf,
                        const json_t *text)
{
    size_t room = buf->size < PX_MAX_RECORD_TEXT ? PX_MAX_RECORD_TEXT - buf->size : 0;
    size_t size = px_text_cut(json_string_value(text), json_string_length(text), room);
    if (size == 0)
        return;
    px_buf_append(buf, json_string_value(text), size);
    px_db_resize(hub->db, record, 0, size);
}

static void keep_stream(struct px_hub *hub, struct px_record *record, const json_t *content)
{
    const char *name = json_string_value(json_object_get(content, "name"));
    struct px_buf *buf =
        name != NULL && strcmp(name, "stderr") == 0 ? &record->standard_err : &record->standard_out;
    append_text(hub, record, buf, json_object_get(content, "text"));
}

/* Output of which the last of each type is kept: the content, or one member of it. */
static const struct {
    const char *type, *member;
    size_t offset;
} kept[] = {
    {"error", NULL, offsetof(struct px_record, error)},
    {"execute_input", "code", offsetof(struct px_record, execute_input)},
    {"execute_result", NULL, offsetof(struct px_record, execute_result)},
    {"display_data", NULL, offsetof(struct px_record, display_data)},
};
#define STREAM PX_COUNT(kept) /* what find_output() calls a stream */
#define OTHER (STREAM + 1)

static size_t find_output(struct px_span type)
{
    for (size_t i = 0; i < PX_COUNT(kept); i++) {
        if (px_span_equal(type, kept[i].type))
            return i;
    }
    return px_span_equal(type, "stream") ? STREAM : OTHER;
}

static void keep_output(struct px_hub *hub, struct px_record *record, size_t which, json_t *content,
                        size_t bytes)
{
    json_t **place = (json_t **)((char *)record + kept[which].offset);
    json_t *value = kept[which].member ? json_object_get(content, kept[which].member) : content;
    size_t before = record->kept_bytes[which];
    if (bytes > PX_MAX_RECORD_TEXT)
        return;
    json_decref(*place);
    *place = json_incref(value);
    record->kept_bytes[which] = bytes;
    px_db_resize(hub->db, record, before, bytes);
}

static void on_iopub(struct px_hub *hub, const struct px_note *note)
{
    struct px_header header;
    if (px_header_scan(px_msg_header(note->msg), &header, NULL) != 0)
        return;
    if (px_span_equal(header.msg_type, "shutdown_reply")) {
        struct px_member *member = px_hub_member(hub, header.session);
        if (member != NULL)
            px_hub_unregister(hub, member, NULL);
        return;
    }
    struct px_span msg_id = px_scan_member(px_msg_parent(note->msg), "msg_id");
    size_t which = find_output(header.msg_type);
    if (which == OTHER || msg_id.size == 0 || msg_id.size > PX_MAX_MSG_ID)
        return;
    /* Of an unfinished task there is a record; of another there may be one, on disk perhaps. */
    struct px_record *record = px_hub_job(hub, msg_id) == NULL ? px_db_get(hub->db, msg_id) : NULL;
    if (record == NULL)
        record = px_db_want(hub->db, msg_id);
    json_t *content = record ? px_json_parse(px_msg_content(note->msg), NULL) : NULL;
    if (content != NULL) {
        px_hub_changed(hub, record);
        if (which == STREAM)
            keep_stream(hub, record, content);
        else
            keep_output(hub, record, which, content, px_msg_content(note->msg).size);
    }
    json_decref(content);
}

/* ---- hearts ---------------------------------------------------------------- */

static void on_new_heart(struct px_hub *hub, const struct px_note *note)
{
    px_hub_new_heart(hub, px_span_of(note->text));
}

static void on_listener(struct px_hub *hub, const struct px_note *note)
{
    snprintf(hub->listeners[hub->listened++ % PX_LISTENERS], PX_LISTENER_SIZE, "%s", note->text);
}

static void on_probed(struct px_hub *hub, const struct px_note *note)
{
    struct px_span uuid = px_span_of(note->text);
    px_hub_probed(hub, uuid, px_probe_number(px_span_of(uuid.data + uuid.size + 1)));
}

static void on_broadcast(struct px_hub *hub, const struct px_note *note)
{
    struct px_span uuid = px_span_of(note->text);
    struct px_member *member = px_hub_member(hub, uuid);
    const bool begun = uuid.data[uuid.size + 1] == '+';
    if (member == NULL || (!begun && member->broadcasts == 0))
        return;
    member->broadcasts += begun ? 1 : (size_t)-1;
    px_adapt_worked(hub, member);
}

static void on_stopped_heart(struct px_hub *hub, const struct px_note *note)
{
    struct px_member *member = px_hub_member(hub, px_span_of(note->text));
    if (member != NULL)
        px_hub_unregister(hub, member, "its heart has stopped");
}

static void (*const handlers[PX_NOTE_KINDS])(struct px_hub *, const struct px_note *) = {
    [PX_NOTE_MUX_REQUEST] = on_mux_request,
    [PX_NOTE_MUX_REPLY] = px_monitor_reply,
    [PX_NOTE_MUX_AGAIN] = px_again_direct_request,
    [PX_NOTE_MUX_LATE] = px_again_direct_reply,
    [PX_NOTE_TASK_REQUEST] = on_task_request,
    [PX_NOTE_TASK_AGAIN] = px_again_task_request,
    [PX_NOTE_TASK_DESTINATION] = on_task_destination,
    [PX_NOTE_TASK_REPLY] = on_task_reply,
    [PX_NOTE_IOPUB] = on_iopub,
    [PX_NOTE_LISTENER] = on_listener,
    [PX_NOTE_WHY] = px_why_note,
    [PX_NOTE_REPORT] = px_status_note,
    [PX_NOTE_ADAPT] = px_adapt_note,
    [PX_NOTE_BROADCAST] = on_broadcast,
    [PX_NOTE_QUERY] = px_hub_query,
    [PX_NOTE_PROBED] = on_probed,
    [PX_NOTE_NEW_HEART] = on_new_heart,
    [PX_NOTE_STOPPED_HEART] = on_stopped_heart,
};

void px_monitor_note(struct px_hub *hub, const struct px_note *note)
{
    handlers[note->kind](hub, note);
}
