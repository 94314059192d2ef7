/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * config: traits, as ipcontroller calls its settings, and where they are written: the profile's
 * ipcontroller_config.json and ipcontroller_config.py (only lines `c.Class.trait = literal`: no
 * Python is run), and lists of ports. One table says which traits there are.
 */
#include "controller.h"

#include <ctype.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CONFIG (1u << 20)
#define MAX_KEY 4096u
#define AT(field) offsetof(struct px_settings, field)

/* ---- traits ---------------------------------------------------------------- */

enum kind { TEXT, NUMBER, REAL, TRUTH };

struct trait {
    const char *name;
    enum kind kind;
    size_t offset;
};

static const struct trait traits[] = {
    {"HeartMonitor.period", NUMBER, AT(ping_ms)},
    {"HeartMonitor.max_heartmonitor_misses", NUMBER, AT(max_misses)},
    {"IPController.registration_timeout", NUMBER, AT(registration_timeout_s)},
    {"Hub.registration_timeout", NUMBER, AT(registration_timeout_s)},
    {"TaskScheduler.scheme_name", TEXT, AT(scheme)},
    {"TaskScheduler.hwm", NUMBER, AT(hwm)},
    {"IPController.ip", TEXT, AT(ip)},
    {"IPController.engine_ip", TEXT, AT(engine_ip)},
    {"IPController.client_ip", TEXT, AT(client_ip)},
    {"IPController.transport", TEXT, AT(transport)},
    {"IPController.location", TEXT, AT(location)},
    {"IPController.regport", NUMBER, AT(port)},
    {"IPController.ports", TEXT, AT(ports)},
    {"IPController.engine_ports", TEXT, AT(engine_ports)},
    {"IPController.client_ports", TEXT, AT(client_ports)},
    {"IPController.ssh_server", TEXT, AT(ssh)},
    {"IPController.engine_ssh_server", TEXT, AT(engine_ssh)},
    {"IPController.reuse_files", TRUTH, AT(reuse)},
    {"IPController.restore_engines", TRUTH, AT(restore)},
    {"IPController.broadcast_scheduler_depth", NUMBER, AT(broadcast_depth)},
    {"IPController.db_class", TEXT, AT(db_class)},
    {"IPController.use_threads", TRUTH, AT(ignored)},
    {"IPController.enable_curve", TRUTH, AT(curve)},
    {"IPController.curve_publickey", TEXT, AT(ignored_text)}, /* follows from the secret one */
    {"IPController.curve_secretkey", TEXT, AT(curve_secret)},
    {"IPController.engine_json_file", TEXT, AT(engine_file)},
    {"IPController.client_json_file", TEXT, AT(client_file)},
    {"IPController.cluster_id", TEXT, AT(cluster_id)},
    {"IPController.log_level", NUMBER, AT(log_level)},
    {"IPController.work_dir", TEXT, AT(work_dir)},
    {"BaseParallelApplication.cluster_id", TEXT, AT(cluster_id)},
    {"BaseParallelApplication.work_dir", TEXT, AT(work_dir)},
    {"BaseIPythonApplication.profile", TEXT, AT(profile)},
    {"BaseIPythonApplication.ipython_dir", TEXT, AT(ipython_dir)},
    {"ProfileDir.location", TEXT, AT(profile_dir)},
    {"BaseIPythonApplication.extra_config_file", TEXT, AT(config_file)},
    {"Application.log_level", NUMBER, AT(log_level)},
    {"IPController.log_to_file", TRUTH, AT(log_to_file)},
    {"BaseParallelApplication.log_to_file", TRUTH, AT(log_to_file)},
    {"DictDB.record_limit", NUMBER, AT(record_limit)},
    {"DictDB.size_limit", REAL, AT(size_limit)},
    {"DictDB.cull_fraction", REAL, AT(cull_fraction)},
    {"SQLiteDB.filename", TEXT, AT(sqlite_file)},
    {"SQLiteDB.location", TEXT, AT(sqlite_dir)},
    {"SQLiteDB.commit_ms", NUMBER, AT(commit_ms)},
    {"SQLiteDB.record_limit", NUMBER, AT(disk_records)},
    {"SQLiteDB.size_limit", REAL, AT(disk_bytes)},
    {"SQLiteDB.synchronous", TRUTH, AT(synced)},
    {"Session.key", TEXT, AT(session_key)},
    {"Session.keyfile", TEXT, AT(key_file)},
    {"Session.signature_scheme", TEXT, AT(signature_scheme)},
    {"Session.packer", TEXT, AT(packer)},
    {"Session.unpacker", TEXT, AT(packer)},
    {"Session.session", TEXT, AT(ident)},
    {"Session.username", TEXT, AT(ignored_text)},
};

static char *own(struct px_settings *settings, char *text)
{
    settings->owned =
        px_realloc(settings->owned, (settings->owned_count + 1) * sizeof(*settings->owned));
    settings->owned[settings->owned_count++] = text;
    return text;
}

void px_settings_fini(struct px_settings *settings)
{
    for (size_t i = 0; i < settings->owned_count; i++)
        free(settings->owned[i]);
    free(settings->owned);
    settings->owned = NULL;
    settings->owned_count = 0;
}

/* 'x', "x", b'x' without their quotes and escapes; anything else as it is. */
static char *unquote(struct px_span literal)
{
    if (literal.size > 2 && (literal.data[0] == 'b' || literal.data[0] == 'u') &&
        (literal.data[1] == '\'' || literal.data[1] == '"')) {
        literal.data++;
        literal.size--;
    }
    char quote = literal.size >= 2 ? literal.data[0] : 0;
    if ((quote != '\'' && quote != '"') || literal.data[literal.size - 1] != quote)
        return px_strndup(literal.data, literal.size);
    struct px_buf out = {0};
    px_buf_text(&out, "");
    for (size_t i = 1; i + 1 < literal.size; i++) {
        if (literal.data[i] == '\\' && i + 2 < literal.size)
            i++;
        px_buf_append(&out, literal.data + i, 1);
    }
    return out.data ? out.data : px_strdup("");
}

static int set_text(struct px_settings *settings, const struct trait *trait, char *text,
                    struct px_error *err)
{
    (void)err;
    const char **field = (const char **)((char *)settings + trait->offset);
    *field = strcmp(text, "None") == 0 || strcmp(text, "null") == 0 ? NULL : own(settings, text);
    if (*field == NULL)
        free(text);
    return 0;
}

static int set_number(struct px_settings *settings, const struct trait *trait, char *text,
                      struct px_error *err)
{
    char *end;
    double value = strtod(text, &end);
    bool right = end != text && *end == 0 && value >= 0 && value <= INT_MAX;
    if (right)
        *(int *)((char *)settings + trait->offset) = (int)value;
    int rc = right ? 0 : px_fail(err, PX_EINVAL, "%s: not a number: %.60s", trait->name, text);
    free(text);
    return rc;
}

static int set_real(struct px_settings *settings, const struct trait *trait, char *text,
                    struct px_error *err)
{
    char *end;
    double value = strtod(text, &end);
    bool right = end != text && *end == 0 && value >= 0;
    if (right)
        *(double *)((char *)settings + trait->offset) = value;
    int rc = right ? 0 : px_fail(err, PX_EINVAL, "%s: not a number: %.60s", trait->name, text);
    free(text);
    return rc;
}

static int set_truth(struct px_settings *settings, const struct trait *trait, char *text,
                     struct px_error *err)
{
    static const char *const words[] = {"false", "0", "true", "1"};
    int rc = -1;
    for (char *at = text; *at; at++)
        *at = (char)tolower((unsigned char)*at);
    for (size_t i = 0; i < PX_COUNT(words) && rc != 0; i++) {
        if (strcmp(text, words[i]) != 0)
            continue;
        *(int *)((char *)settings + trait->offset) = i >= 2;
        rc = 0;
    }
    if (rc != 0)
        px_fail(err, PX_EINVAL, "%s: neither True nor False: %.60s", trait->name, text);
    free(text);
    return rc;
}

static int (*const setters[])(struct px_settings *, const struct trait *, char *,
                              struct px_error *) = {
    [TEXT] = set_text,
    [NUMBER] = set_number,
    [REAL] = set_real,
    [TRUTH] = set_truth,
};

int px_settings_trait(struct px_settings *settings, const char *name, struct px_span literal,
                      struct px_error *err)
{
    const char *names[PX_COUNT(traits) + 1];
    for (size_t i = 0; i < PX_COUNT(traits); i++) {
        names[i] = traits[i].name;
        if (strcmp(traits[i].name, name) == 0)
            return setters[traits[i].kind](settings, &traits[i], unquote(literal), err);
    }
    names[PX_COUNT(traits)] = NULL;
    const char *near = px_nearest(name, names);
    return near ? px_fail(err, PX_ENOENT, "unknown option --%.100s: did you mean --%s?", name, near)
                : px_fail(err, PX_ENOENT, "unknown option --%.100s", name);
}

/* ---- configuration files --------------------------------------------------- */

static struct px_span trim(struct px_span text)
{
    while (text.size > 0 && isspace((unsigned char)text.data[0])) {
        text.data++;
        text.size--;
    }
    while (text.size > 0 && isspace((unsigned char)text.data[text.size - 1]))
        text.size--;
    return text;
}

/* Cuts a comment that is not inside quotes. */
static struct px_span without_comment(struct px_span line)
{
    char quote = 0;
    for (size_t i = 0; i < line.size; i++) {
        char c = line.data[i];
        if (quote != 0 && c == '\\')
            i++;
        else if (quote != 0 && c == quote)
            quote = 0;
        else if (quote == 0 && (c == '\'' || c == '"'))
            quote = c;
        else if (quote == 0 && c == '#')
            return (struct px_span){line.data, i};
    }
    return line;
}

/* A literal is a number, a string, a list, True, False or None; an expression is none. */
static bool is_literal(struct px_span text)
{
    if (text.size == 0)
        return false;
    char first = text.data[0], last = text.data[text.size - 1];
    if (first == '\'' || first == '"')
        return text.size >= 2 && last == first &&
               memchr(text.data + 1, first, text.size - 2) == NULL;
    if (first == '[')
        return last == ']';
    if (first == 'b' && text.size > 2)
        return last == '\'' || last == '"';
    return isdigit((unsigned char)first) || first == '.' || px_span_equal(text, "True") ||
           px_span_equal(text, "False") || px_span_equal(text, "None");
}

static int config_line(struct px_settings *settings, struct px_span line)
{
    line = trim(without_comment(line));
    const char *equal =
        line.size > 2 && memcmp(line.data, "c.", 2) == 0 ? memchr(line.data, '=', line.size) : NULL;
    if (equal == NULL)
        return 0;
    struct px_span name = trim((struct px_span){line.data + 2, (size_t)(equal - line.data) - 2});
    struct px_span value =
        trim((struct px_span){equal + 1, line.size - (size_t)(equal + 1 - line.data)});
    struct px_error err;
    char text[128];
    if (name.size >= sizeof(text) || !is_literal(value))
        return 0;
    memcpy(text, name.data, name.size);
    text[name.size] = 0;
    if (px_settings_trait(settings, text, value, &err) == 0)
        return 1;
    if (err.code != PX_ENOENT)
        px_log(PX_WARN, "config-value", "why=\"%s\"", err.text);
    return 0;
}

int px_settings_config_py(struct px_settings *settings, struct px_span text)
{
    int count = 0;
    while (text.size > 0) {
        const char *end = memchr(text.data, '\n', text.size);
        size_t size = end ? (size_t)(end - text.data) : text.size;
        count += config_line(settings, (struct px_span){text.data, size});
        size += end != NULL;
        text.data += size;
        text.size -= size;
    }
    return count;
}

static int config_value(struct px_settings *settings, const char *class_name, const char *trait,
                        const json_t *value)
{
    char name[128];
    char *text = json_dumps(value, JSON_ENCODE_ANY);
    int size = snprintf(name, sizeof(name), "%s.%s", class_name, trait);
    struct px_error err = {0};
    int rc = -1;
    if (text != NULL && size < (int)sizeof(name))
        rc = px_settings_trait(settings, name, px_span_of(text), &err);
    if (rc != 0 && err.code == PX_EINVAL)
        px_log(PX_WARN, "config-value", "why=\"%s\"", err.text);
    free(text);
    return rc == 0;
}

int px_settings_config_json(struct px_settings *settings, struct px_span text)
{
    json_t *config = px_json_parse(text, NULL);
    const char *class_name, *trait;
    json_t *section, *value;
    int count = 0;
    json_object_foreach(config, class_name, section) {
        json_object_foreach(section, trait, value)
            count += config_value(settings, class_name, trait, value);
    }
    json_decref(config);
    return count;
}

void px_settings_config(struct px_settings *settings, const char *profile_dir)
{
    static const struct {
        const char *name;
        int (*read)(struct px_settings *, struct px_span);
    } files[] = {{"ipcontroller_config.py", px_settings_config_py},
                 {"ipcontroller_config.json", px_settings_config_json}};
    for (size_t i = 0; i < PX_COUNT(files); i++) {
        struct px_buf text = {0};
        char *path = px_format("%s/%s", profile_dir, files[i].name);
        struct px_error err;
        if (px_file_read(path, MAX_CONFIG, &text, &err) == 0)
            files[i].read(settings, px_buf_span(&text));
        else if (err.code != PX_ENOENT)
            px_log(PX_WARN, "config-unreadable", "why=\"%s\"", err.text);
        px_buf_fini(&text);
        free(path);
    }
}

static int read_config_file(struct px_settings *settings, struct px_error *err)
{
    struct px_buf text = {0};
    const char *path = settings->config_file;
    size_t size = path ? strlen(path) : 0;
    if (size == 0)
        return 0;
    int rc = px_file_read(path, MAX_CONFIG, &text, err);
    if (rc == 0 && size > 5 && strcmp(path + size - 5, ".json") == 0)
        px_settings_config_json(settings, px_buf_span(&text));
    else if (rc == 0)
        px_settings_config_py(settings, px_buf_span(&text));
    px_buf_fini(&text);
    return rc;
}

static int read_key_file(struct px_settings *settings, struct px_error *err)
{
    struct px_buf text = {0};
    if (settings->key_file == NULL || settings->key_file[0] == 0)
        return 0;
    int rc = px_file_read(settings->key_file, MAX_KEY, &text, err);
    struct px_span key = rc == 0 ? trim(px_buf_span(&text)) : (struct px_span){0};
    if (key.size > 0)
        settings->session_key = own(settings, px_strndup(key.data, key.size));
    else if (rc == 0)
        rc = px_fail(err, PX_EINVAL, "%.200s holds no key", settings->key_file);
    px_buf_fini(&text);
    return rc;
}

int px_settings_files(struct px_settings *settings, struct px_error *err)
{
    return read_config_file(settings, err) != 0 ? -1 : read_key_file(settings, err);
}

/* ---- ports ----------------------------------------------------------------- */

/* One "N" or "N-M" at *at, which moves behind it. */
static int parse_range(const char **at, struct px_port_pool *out)
{
    char *end;
    long first = strtol(*at, &end, 10), last = first;
    if (end == *at)
        return -1;
    if (*end == '-') {
        *at = end + 1;
        last = strtol(*at, &end, 10);
        if (end == *at)
            return -1;
    }
    *at = end;
    if (first < 1 || last < first || last > 65535 || last - first >= PX_MAX_PORTS - out->count)
        return -1;
    for (long port = first; port <= last; port++)
        out->ports[out->count++] = (int)port;
    return 0;
}

int px_ports_parse(const char *text, struct px_port_pool *out, struct px_error *err)
{
    *out = (struct px_port_pool){0};
    const char *at = text ? text : "";
    for (at += strspn(at, " ,[]'\""); *at != 0; at += strspn(at, " ,[]'\"")) {
        if (parse_range(&at, out) != 0)
            return px_fail(err, PX_EINVAL, "not a list of ports: %.100s", text);
    }
    return 0;
}
