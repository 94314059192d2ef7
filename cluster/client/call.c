/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * call: calling a Python function by name with JSON, without Python here.
 *
 * A call is an ordinary apply in ipyparallel's form (ipyparallel/serialize/serialize.py,
 * pack_apply_message), so any engine runs it:
 *
 *     function    pickle of eval(the text in call.py, the functions that it needs)
 *     info        pickle of {"nargs": 1, "narg_bufs": 1, "kw_keys": []}
 *     argument    pickle of a dictionary: function, args, kwargs, as texts
 *
 * The function turns JSON into arguments and the value into JSON, so the only pickles here are of
 * texts. It is the same for every call, so an engine that remembers functions by their pickle
 * compiles it once. The value comes back as one, in whatever protocol the engine's pickle writes.
 * Pure.
 */
#include "client/client.h"

#include <string.h>

extern const char px_embedded_call[];

/* ---- packing ----------------------------------------------------------------------- */

static void put_size(struct px_buf *out, uint32_t size)
{
    const unsigned char bytes[4] = {size & 255, size >> 8 & 255, size >> 16 & 255, size >> 24};
    px_buf_append(out, bytes, sizeof bytes);
}

/* BINUNICODE */
static void put_text(struct px_buf *out, const char *text)
{
    const size_t size = strlen(text);
    px_buf_text(out, "X");
    put_size(out, (uint32_t)size);
    px_buf_append(out, text, size);
}

/* What call.py has as its globals: nothing but the standard library, so every engine has it. */
static const struct {
    const char *name, *module;
} needs[] = {
    {"dumps", "json"},
    {"loads", "json"},
    {"reduce", "functools"},
    {"import_module", "importlib"},
};

static void put_function(struct px_buf *out)
{
    px_buf_text(out, "cbuiltins\neval\n(");
    put_text(out, px_embedded_call);
    px_buf_text(out, "}(");
    for (size_t i = 0; i < PX_COUNT(needs); i++) {
        put_text(out, needs[i].name);
        px_buf_printf(out, "c%s\n%s\n", needs[i].module, needs[i].name);
    }
    px_buf_text(out, "utR.");
}

void px_call_pack(struct px_call *call, const char *function, const char *args, const char *kwargs)
{
    static const char info[] = "(dVnargs\nI1\nsVnarg_bufs\nI1\nsVkw_keys\n(ls.";
    const char *const members[][2] = {
        {"function", function}, {"args", args ? args : "[]"}, {"kwargs", kwargs ? kwargs : "{}"}};
    *call = (struct px_call){0};
    put_function(&call->code);
    px_buf_text(&call->names, "}(");
    for (size_t i = 0; i < PX_COUNT(members); i++) {
        put_text(&call->names, members[i][0]);
        put_text(&call->names, members[i][1]);
    }
    px_buf_text(&call->names, "u.");
    call->buffers[0] = (struct phalanx_buffer){.data = call->code.data, .size = call->code.size};
    call->buffers[1] = (struct phalanx_buffer){.data = info, .size = sizeof info - 1};
    call->buffers[2] = (struct phalanx_buffer){.data = call->names.data, .size = call->names.size};
}

void px_call_fini(struct px_call *call)
{
    px_buf_fini(&call->code);
    px_buf_fini(&call->names);
}

/* ---- unpacking --------------------------------------------------------------------- */

/* What a pickle of a text consists of: opcodes with so many bytes behind them. */
static const struct opcode {
    unsigned char code;
    unsigned char bytes;
    enum { SKIP, TEXT, STOP } kind;
} opcodes[] = {
    {0x80, 1, SKIP}, /* PROTO */
    {0x95, 8, SKIP}, /* FRAME */
    {0x94, 0, SKIP}, /* MEMOIZE */
    {'q', 1, SKIP},  /* BINPUT */
    {'r', 4, SKIP},  /* LONG_BINPUT */
    {0x8c, 1, TEXT}, /* SHORT_BINUNICODE */
    {'X', 4, TEXT},  /* BINUNICODE */
    {0x8d, 8, TEXT}, /* BINUNICODE8 */
    {'.', 0, STOP},
};

static const struct opcode *find_opcode(unsigned char code)
{
    for (size_t i = 0; i < PX_COUNT(opcodes); i++) {
        if (opcodes[i].code == code)
            return &opcodes[i];
    }
    return NULL;
}

/* Little-endian. */
static uint64_t number(const unsigned char *at, size_t bytes)
{
    uint64_t value = 0;
    while (bytes--)
        value = value << 8 | at[bytes];
    return value;
}

bool px_unpickle_text(struct px_span pickle, struct px_span *text)
{
    const unsigned char *at = (const unsigned char *)pickle.data;
    size_t left = pickle.size;
    *text = (struct px_span){0};
    while (left) {
        const struct opcode *opcode = find_opcode(*at);
        if (!opcode || left - 1 < opcode->bytes)
            return false;
        if (opcode->kind == STOP)
            return left == 1 && text->data;
        const uint64_t size = opcode->kind == TEXT ? number(at + 1, opcode->bytes) : 0;
        at += 1 + opcode->bytes;
        left -= 1 + opcode->bytes;
        if (opcode->kind == SKIP)
            continue;
        if (text->data || size > left)
            return false;
        *text = (struct px_span){(const char *)at, (size_t)size};
        at += size;
        left -= (size_t)size;
    }
    return false;
}

/* ---- the public side ------------------------------------------------------------------ */

static const char *text_of(json_t *content, const char *key)
{
    const char *text = json_string_value(json_object_get(content, key));
    return text ? text : "";
}

static void say_failure(const struct phalanx_event *event, struct phalanx_error *err)
{
    json_t *content = event->content ? json_loads(event->content, 0, NULL) : NULL;
    const char *ename = text_of(content, "ename");
    if (*ename)
        px_refuse(err, PHALANX_EREMOTE, "%s: %s", ename, text_of(content, "evalue"));
    else
        px_refuse(err, PHALANX_EREMOTE, "The task was %s",
                  strcmp(text_of(content, "status"), "aborted") == 0 ? "aborted" : "not done");
    json_decref(content);
}

char *phalanx_value(const struct phalanx_event *event, struct phalanx_error *err)
{
    struct px_span text = {0};
    const struct phalanx_buffer *buffer = event->buffer_count == 1 ? event->buffers : NULL;
    if (event->type != PHALANX_REPLY)
        px_refuse(err, PHALANX_EINVAL, "Only a reply has a value");
    else if (event->failed)
        say_failure(event, err);
    else if (buffer && px_unpickle_text((struct px_span){buffer->data, buffer->size}, &text))
        return px_strndup(text.data, text.size);
    else
        px_refuse(err, PHALANX_EINVAL, "The reply is not that of a call by name");
    return NULL;
}
