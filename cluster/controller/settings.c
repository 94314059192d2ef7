/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * settings: what ipcontroller's users write, read from where they write it.
 *
 * One struct holds the defaults; over them go the profile's ipcontroller_config.json and
 * ipcontroller_config.py (only lines `c.Class.trait = literal`: no Python is run), the
 * environment, and the command line with its options (--ping=250) and traits
 * (--HeartMonitor.period=250). Two tables say what there is; nothing is parsed elsewhere.
 */
#include "controller.h"
#include "protocol.h"
#include "schedule.h"

#include <ctype.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_CONFIG (1u << 20)
#define AT(field) offsetof(struct px_settings, field)

static const struct px_option options[] = {
    {.type = PX_OPT_HEADING, .help = "Profile and files"},
    {"profile", 0, PX_OPT_STRING, AT(profile), 0, "NAME", "profile (default)", 0, 0},
    {"profile-dir", 0, PX_OPT_STRING, AT(profile_dir), 0, "DIR",
     "profile directory, made if it is not there", 0, 0},
    {"ipython-dir", 0, PX_OPT_STRING, AT(ipython_dir), 0, "DIR",
     "where profiles are ($IPYTHONDIR or ~/.ipython)", 0, 0},
    {"cluster-id", 0, PX_OPT_STRING, AT(cluster_id), 0, "ID", "tells clusters of one profile apart",
     0, 0},
    {"reuse", 0, PX_OPT_SET, AT(reuse), 1, NULL, "keep key and ports of existing files", 0, 0},
    {"restore", 0, PX_OPT_SET, AT(restore), 1, NULL,
     "as --reuse, and take back the engines of a controller that was killed", 0, 0},
    {"work-dir", 0, PX_OPT_STRING, AT(work_dir), 0, "DIR", "change to this directory first", 0, 0},
    {.type = PX_OPT_HEADING, .help = "Addresses"},
    {"ip", 0, PX_OPT_STRING, AT(ip), 0, "IP", "address to listen on (127.0.0.1)", 0, 0},
    {"location", 0, PX_OPT_STRING, AT(location), 0, "HOST",
     "name or address by which others find this machine (host name)", 0, 0},
    {"port", 0, PX_OPT_INT, AT(port), 0, "N", "registration port (any)", 1, 65535},
    {"ports", 0, PX_OPT_STRING, AT(ports), 0, "LIST", "ports to use: 10101-10120,10125 (any)", 0,
     0},
    {"transport", 0, PX_OPT_STRING, AT(transport), 0, "NAME", "tcp or ipc (tcp)", 0, 0},
    {"ssh", 0, PX_OPT_STRING, AT(ssh), 0, "HOST", "ssh server for clients to tunnel through", 0, 0},
    {"enginessh", 0, PX_OPT_STRING, AT(engine_ssh), 0, "HOST", "the same for engines", 0, 0},
    {"enable-curve", 0, PX_OPT_SET, AT(curve), 1, NULL,
     "encrypt everything; peers need the key in the connection files", 0, 0},
    {"no-secure", 0, PX_OPT_SET, AT(secure), 0, NULL, "sign no messages", 0, 0},
    {"secure", 0, PX_OPT_SET, AT(secure), 1, NULL, "sign messages (the default)", 0, 0},
    {.type = PX_OPT_HEADING, .help = "Tasks and heartbeat"},
    {"scheme", 0, PX_OPT_STRING, AT(scheme), 0, "NAME",
     "leastload, lru, plainrandom, twobin, weighted or pure (leastload)", 0, 0},
    {"hwm", 0, PX_OPT_INT, AT(hwm), 0, "N", "tasks an engine may hold; 0: any number (1)", 0,
     1000000},
    {"ping", 0, PX_OPT_INT, AT(ping_ms), 0, "MS", "heartbeat period, milliseconds (3000)", 10,
     3600000},
    {"dictdb", 0, PX_OPT_SET, AT(db), PX_DB_MEMORY, NULL, "keep results in memory (the default)", 0,
     0},
    {"sqlitedb", 0, PX_OPT_SET, AT(db), PX_DB_SQLITE, NULL,
     "keep all results in tasks.db of the profile", 0, 0},
    {"nodb", 0, PX_OPT_SET, AT(db), PX_DB_NONE, NULL, "keep no results", 0, 0},
    {.type = PX_OPT_HEADING, .help = "Operation"},
    {"log-level", 0, PX_OPT_LEVEL, AT(log_level), 0, "LEVEL",
     "debug, info, warn, error or 10 to 50 (info)", 0, 0},
    {"debug", 0, PX_OPT_SET, AT(log_level), PX_DEBUG, NULL, "as --log-level=debug", 0, 0},
    {"quiet", 0, PX_OPT_SET, AT(log_level), PX_ERROR, NULL, "as --log-level=error", 0, 0},
    {"ready-fd", 0, PX_OPT_INT, AT(ready_fd), 0, "N",
     "write \"ready\" to this descriptor when all is up", 0, INT_MAX},
    /* Flags of ipcontroller that change nothing here, or that few need. */
    {"user", 0, PX_OPT_STRING, AT(ignored_text), 0, "NAME", NULL, 0, 0},
    {"ident", 0, PX_OPT_STRING, AT(ident), 0, "ID", NULL, 0, 0},
    {"usethreads", 0, PX_OPT_SET, AT(ignored), 1, NULL, NULL, 0, 0},
    {"clean-logs", 0, PX_OPT_SET, AT(ignored), 1, NULL, NULL, 0, 0},
    {"init", 0, PX_OPT_SET, AT(ignored), 1, NULL, NULL, 0, 0},
    {0},
};

static const struct px_usage usage = {
    .program = "pxcontroller",
    .synopsis = "[options] [--Class.trait=value ...]",
    .about = "The controller of a cluster: hub, task scheduler, relays and heartbeat in one "
             "process. Stands in for ipcontroller.",
    .examples = "pxcontroller --profile=work --scheme=twobin\n"
                "pxcontroller --ip=192.168.0.1 --ports=10101-10120",
    .options = options,
};

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
    {"Application.log_level", NUMBER, AT(log_level)},
    {"DictDB.record_limit", NUMBER, AT(record_limit)},
    {"DictDB.size_limit", REAL, AT(size_limit)},
    {"DictDB.cull_fraction", REAL, AT(cull_fraction)},
    {"SQLiteDB.filename", TEXT, AT(sqlite_file)},
    {"SQLiteDB.location", TEXT, AT(sqlite_dir)},
    {"SQLiteDB.commit_ms", NUMBER, AT(commit_ms)},
    {"Session.key", TEXT, AT(session_key)},
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

static void read_config(struct px_settings *settings, const char *profile_dir)
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

/* ---- all together ---------------------------------------------------------- */

static const struct px_settings defaults = {
    .transport = "tcp",
    .ping_ms = PX_HEARTBEAT_MS,
    .max_misses = 10,
    .scheme = "leastload",
    .hwm = 1,
    .broadcast_depth = 1,
    .record_limit = 1024,
    .size_limit = (double)(1 << 30),
    .cull_fraction = 0.1,
    .secure = 1,
    .signature_scheme = "hmac-sha256",
    .log_level = PX_INFO,
    .ready_fd = -1,
    .db = PX_DB_MEMORY,
    .sqlite_file = "tasks.db",
    .commit_ms = 1000,
};

static bool is_trait_arg(const char *arg)
{
    return arg[0] == '-' && arg[1] == '-' && isupper((unsigned char)arg[2]) &&
           strchr(arg, '.') != NULL && strchr(arg, '=') != NULL;
}

/* Moves --Class.trait=value arguments to the end; returns how many others there are. */
static int part_arguments(int argc, char **argv, char **parted)
{
    int plain = 0, place = argc;
    for (int i = argc - 1; i >= 1; i--) {
        if (is_trait_arg(argv[i]))
            parted[--place] = argv[i];
    }
    for (int i = 0; i < argc; i++) {
        if (i == 0 || !is_trait_arg(argv[i]))
            parted[plain++] = argv[i];
    }
    return plain;
}

static int apply_trait_args(struct px_settings *settings, char **args, int count,
                            struct px_error *err)
{
    for (int i = 0; i < count; i++) {
        const char *equal = strchr(args[i], '=');
        char *name = px_strndup(args[i] + 2, (size_t)(equal - args[i]) - 2);
        int rc = px_settings_trait(settings, name, px_span_of(equal + 1), err);
        free(name);
        if (rc != 0)
            return -1;
    }
    return 0;
}

static void apply_environment(struct px_settings *settings)
{
    const char *value = getenv("IPP_ENABLE_CURVE");
    if (value != NULL && strcmp(value, "1") == 0)
        settings->curve = 1;
    if ((value = getenv("IPP_SESSION_KEY")) != NULL && value[0] != 0)
        settings->session_key = value;
    if ((value = getenv("IPP_CURVE_SECRETKEY")) != NULL && value[0] != 0)
        settings->curve_secret = value;
}

static int apply_db_class(struct px_settings *settings, struct px_error *err)
{
    static const struct {
        const char *suffix;
        enum px_db_kind kind;
    } names[] = {{"DictDB", PX_DB_MEMORY}, {"dictdb", PX_DB_MEMORY},   {"NoDB", PX_DB_NONE},
                 {"nodb", PX_DB_NONE},     {"SQLiteDB", PX_DB_SQLITE}, {"sqlitedb", PX_DB_SQLITE}};
    size_t size = settings->db_class ? strlen(settings->db_class) : 0;
    for (size_t i = 0; size > 0 && i < PX_COUNT(names); i++) {
        size_t length = strlen(names[i].suffix);
        if (size < length || strcmp(settings->db_class + size - length, names[i].suffix) != 0)
            continue;
        settings->db = (int)names[i].kind;
        return 0;
    }
    return size == 0 ? 0
                     : px_fail(err, PX_EINVAL, "db_class: no such task database: %.100s",
                               settings->db_class);
}

static int check(const struct px_settings *settings, struct px_error *err)
{
    struct px_port_pool pool;
    if (px_scheme_find(settings->scheme) == NULL && strcmp(settings->scheme, "pure") != 0)
        return px_fail(err, PX_EINVAL, "no such scheme: %.100s", settings->scheme);
    if (settings->ping_ms < 10)
        return px_fail(err, PX_EINVAL, "the heartbeat period must be at least 10 ms");
    if (settings->record_limit < 1 || settings->cull_fraction > 1)
        return px_fail(err, PX_EINVAL, "DictDB: record_limit or cull_fraction is out of range");
    if (settings->packer != NULL && strcmp(settings->packer, "json") != 0)
        return px_fail(err, PX_EINVAL, "Session.packer: only json is spoken here");
    if (px_ports_parse(settings->ports, &pool, err) != 0 ||
        px_ports_parse(settings->engine_ports, &pool, err) != 0)
        return -1;
    return px_ports_parse(settings->client_ports, &pool, err);
}

static int read_all(int plain, char **argv, int count, struct px_settings *out,
                    char profile_dir[PX_PATH_SIZE], struct px_error *err)
{
    struct px_settings first = defaults;
    int end = px_options_main(&usage, plain, argv, &first);
    if (end < plain)
        return px_fail(err, PX_EINVAL, "unexpected argument: %.100s", argv[end]);
    int rc = apply_trait_args(&first, argv + plain, count, err);
    struct px_profile_choice choice = {.ipython_dir = first.ipython_dir,
                                       .profile = first.profile,
                                       .profile_dir = first.profile_dir,
                                       .cluster_id = first.cluster_id};
    if (rc == 0)
        rc = check(&first, err);
    if (rc == 0)
        rc = px_profile_dir(&choice, true, profile_dir, err);
    px_settings_fini(&first);
    if (rc != 0)
        return -1;
    *out = defaults;
    read_config(out, profile_dir);
    if (apply_db_class(out, err) != 0)
        return -1;
    out->db_class = NULL;
    apply_environment(out);
    px_options_main(&usage, plain, argv, out);
    if (apply_trait_args(out, argv + plain, count, err) != 0 || apply_db_class(out, err) != 0)
        return -1;
    choice.cluster_id = out->cluster_id;
    out->cluster_id = px_profile_cluster_id(&choice);
    out->reuse |= out->restore;
    return check(out, err);
}

int px_settings_read(int argc, char **argv, struct px_settings *out, char profile_dir[PX_PATH_SIZE],
                     struct px_error *err)
{
    char **parted = px_alloc((size_t)(argc + 1) * sizeof(*parted));
    *out = (struct px_settings){0};
    int plain = part_arguments(argc, argv, parted);
    char **traits_at = px_alloc((size_t)(argc - plain + 1) * sizeof(*traits_at));
    memcpy(traits_at, parted + plain, (size_t)(argc - plain) * sizeof(*traits_at));
    int rc = read_all(plain, parted, argc - plain, out, profile_dir, err);
    free(traits_at);
    free(parted);
    if (rc == 0 && out->work_dir != NULL && out->work_dir[0] != 0 && chdir(out->work_dir) != 0)
        return px_fail(err, PX_EIO, "cannot change to %.200s", out->work_dir);
    return rc;
}
