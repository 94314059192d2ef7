/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * config: traits, as ipcontroller calls its settings, in one table; the files that options name;
 * and lists of ports.
 */
#include "controller.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define AT(field) offsetof(struct px_settings, field)

/* ---- traits ---------------------------------------------------------------- */

enum kind { TEXT, WORD, NUMBER, REAL, TRUTH, LEVEL }; /* TEXT may be None */

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
    {"TaskScheduler.scheme_name", WORD, AT(scheme)},
    {"TaskScheduler.hwm", NUMBER, AT(hwm)},
    {"IPController.ip", TEXT, AT(ip)},
    {"IPController.engine_ip", TEXT, AT(engine_ip)},
    {"IPController.client_ip", TEXT, AT(client_ip)},
    {"IPController.transport", WORD, AT(transport)},
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
    {"IPController.log_level", LEVEL, AT(log_level)},
    {"IPController.work_dir", TEXT, AT(work_dir)},
    {"BaseParallelApplication.cluster_id", TEXT, AT(cluster_id)},
    {"BaseParallelApplication.work_dir", TEXT, AT(work_dir)},
    {"BaseIPythonApplication.profile", TEXT, AT(profile)},
    {"BaseIPythonApplication.ipython_dir", TEXT, AT(ipython_dir)},
    {"ProfileDir.location", TEXT, AT(profile_dir)},
    {"BaseIPythonApplication.extra_config_file", TEXT, AT(config_file)},
    {"Application.log_level", LEVEL, AT(log_level)},
    {"IPController.log_to_file", TRUTH, AT(log_to_file)},
    {"BaseParallelApplication.log_to_file", TRUTH, AT(log_to_file)},
    {"DictDB.record_limit", NUMBER, AT(record_limit)},
    {"DictDB.size_limit", REAL, AT(size_limit)},
    {"DictDB.cull_fraction", REAL, AT(cull_fraction)},
    {"SQLiteDB.filename", WORD, AT(sqlite_file)},
    {"SQLiteDB.location", TEXT, AT(sqlite_dir)},
    {"SQLiteDB.commit_ms", NUMBER, AT(commit_ms)},
    {"SQLiteDB.record_limit", NUMBER, AT(disk_records)},
    {"SQLiteDB.size_limit", REAL, AT(disk_bytes)},
    {"SQLiteDB.synchronous", TRUTH, AT(synced)},
    {"Session.key", TEXT, AT(session_key)},
    {"Session.keyfile", TEXT, AT(key_file)},
    {"Session.signature_scheme", WORD, AT(signature_scheme)},
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

static bool is_none(const char *text)
{
    return strcmp(text, "None") == 0 || strcmp(text, "null") == 0;
}

static int set_text(struct px_settings *settings, const struct trait *trait, const char *text,
                    struct px_error *err)
{
    (void)err;
    const char **field = (const char **)((char *)settings + trait->offset);
    *field = is_none(text) ? NULL : own(settings, px_strdup(text));
    return 0;
}

static int set_word(struct px_settings *settings, const struct trait *trait, const char *text,
                    struct px_error *err)
{
    if (is_none(text))
        return px_fail(err, PX_EINVAL, "%s: it cannot be None", trait->name);
    return set_text(settings, trait, text, err);
}

static int set_level(struct px_settings *settings, const struct trait *trait, const char *text,
                     struct px_error *err)
{
    const int level = px_log_parse_level(text);
    if (level < 0)
        return px_fail(err, PX_EINVAL, "%s: no level: %.60s", trait->name, text);
    *(int *)((char *)settings + trait->offset) = level;
    return 0;
}

static int read_number(const struct trait *trait, const char *text, double most, double *out,
                       struct px_error *err)
{
    char *end;
    *out = strtod(text, &end);
    return end != text && *end == 0 && *out >= 0 && *out <= most
               ? 0
               : px_fail(err, PX_EINVAL, "%s: not a number: %.60s", trait->name, text);
}

static int set_number(struct px_settings *settings, const struct trait *trait, const char *text,
                      struct px_error *err)
{
    double value;
    if (read_number(trait, text, INT_MAX, &value, err) != 0)
        return -1;
    *(int *)((char *)settings + trait->offset) = (int)value;
    return 0;
}

static int set_real(struct px_settings *settings, const struct trait *trait, const char *text,
                    struct px_error *err)
{
    double value;
    if (read_number(trait, text, INFINITY, &value, err) != 0)
        return -1;
    *(double *)((char *)settings + trait->offset) = value;
    return 0;
}

static int set_truth(struct px_settings *settings, const struct trait *trait, const char *text,
                     struct px_error *err)
{
    static const char *const words[] = {"false", "0", "true", "1"};
    for (size_t i = 0; i < PX_COUNT(words); i++) {
        if (strcasecmp(text, words[i]) != 0)
            continue;
        *(int *)((char *)settings + trait->offset) = i >= 2;
        return 0;
    }
    return px_fail(err, PX_EINVAL, "%s: neither True nor False: %.60s", trait->name, text);
}

static int (*const setters[])(struct px_settings *, const struct trait *, const char *,
                              struct px_error *) = {
    [TEXT] = set_text, [WORD] = set_word,   [NUMBER] = set_number,
    [REAL] = set_real, [TRUTH] = set_truth, [LEVEL] = set_level,
};

/* Whether traits of the same class are known. */
static bool is_of_a_class_here(const char *name)
{
    const size_t class = strcspn(name, ".") + 1;
    for (size_t i = 0; i < PX_COUNT(traits); i++)
        if (strncmp(traits[i].name, name, class) == 0)
            return true;
    return false;
}

static int set_trait(void *settings, const char *name, struct px_span literal, struct px_error *err)
{
    const char *names[PX_COUNT(traits) + 1];
    for (size_t i = 0; i < PX_COUNT(traits); i++) {
        names[i] = traits[i].name;
        if (strcmp(traits[i].name, name) != 0)
            continue;
        char *text = px_config_unquote(literal);
        const int rc = setters[traits[i].kind](settings, &traits[i], text, err);
        free(text);
        return rc;
    }
    names[PX_COUNT(traits)] = NULL;
    const char *near = px_nearest(name, names);
    const enum px_code code = near || is_of_a_class_here(name) ? PX_EINVAL : PX_ENOENT;
    return near ? px_fail(err, code, "unknown option --%.100s: did you mean --%s?", name, near)
                : px_fail(err, code, "unknown option --%.100s", name);
}

int px_settings_trait(void *settings, const char *name, struct px_span literal,
                      struct px_error *err)
{
    /* What IPController was before ipyparallel 7. */
    static const char *const former[] = {"HubFactory.", "IPControllerApp."};
    char *current = NULL;
    for (size_t i = 0; i < PX_COUNT(former); i++)
        if (strncmp(name, former[i], strlen(former[i])) == 0)
            current = px_format("IPController.%s", name + strlen(former[i]));
    const int rc = set_trait(settings, current ? current : name, literal, err);
    free(current);
    return rc;
}

/* ---- files that options name ------------------------------------------------ */

int px_settings_files(struct px_settings *settings, struct px_error *err)
{
    const char *config = settings->config_file, *key = settings->key_file;
    if (config && config[0] && px_config_file(config, NULL, px_settings_trait, settings, err) != 0)
        return -1;
    if (!key || !key[0])
        return 0;
    char *text = px_key_file_read(key, err);
    if (text)
        settings->session_key = own(settings, text);
    return text ? 0 : -1;
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
