/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * settings: what ipcontroller's users write, read from where they write it.
 *
 * One struct holds the defaults; over them go the profile's configuration files (config.c), the
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
     "as --reuse, and take back engines and unfinished tasks of one that was killed", 0, 0},
    {"config", 0, PX_OPT_STRING, AT(config_file), 0, "FILE",
     "one more configuration file, .py or .json", 0, 0},
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
    {"keyfile", 0, PX_OPT_STRING, AT(key_file), 0, "FILE", "the key to sign with (a new one)", 0,
     0},
    {"no-secure", 0, PX_OPT_SET, AT(secure), 0, NULL, "sign no messages", 0, 0},
    {"secure", 0, PX_OPT_SET, AT(secure), 1, NULL, "sign messages (the default)", 0, 0},
    {.type = PX_OPT_HEADING, .help = "Tasks and heartbeat"},
    {"scheme", 0, PX_OPT_STRING, AT(scheme), 0, "NAME", NULL /* describe_schemes() */, 0, 0},
    {"hwm", 0, PX_OPT_INT, AT(hwm), 0, "N",
     "tasks an engine may hold; 0: any number (1, more if very short)", 0, 1000000},
    {"unread", 0, PX_OPT_INT, AT(unread_mb), 0, "MB",
     "replies to keep for clients that do not read them (a quarter of memory, at most 4096)", 1,
     1 << 24},
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
    {"log-to-file", 0, PX_OPT_SET, AT(log_to_file), 1, NULL,
     "log to log/ipcontroller-<pid>.log of the profile", 0, 0},
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
    .examples = "  pxcontroller --profile=work --scheme=twobin\n"
                "  pxcontroller --ip=192.168.0.1 --ports=10101-10120\n",
    .options = options,
};

/* ---- all together ---------------------------------------------------------- */

static const struct px_settings defaults = {
    .transport = "tcp",
    .ping_ms = PX_HEARTBEAT_MS,
    .max_misses = 10,
    .scheme = "leastload",
    .hwm = PX_HWM_UNSAID,
    .broadcast_depth = 1,
    .record_limit = 1024,
    .size_limit = (double)(256 << 20), /* a quarter of ipcontroller's: that memory is held */
    .cull_fraction = 0.1,
    .secure = 1,
    .signature_scheme = "hmac-sha256",
    .log_level = PX_INFO,
    .ready_fd = -1,
    .db = PX_DB_MEMORY,
    .sqlite_file = "tasks.db",
    .commit_ms = 1000,
    .disk_records = 1000000,
    .disk_bytes = 16e9,
};

static bool is_trait_arg(const char *arg)
{
    return arg[0] == '-' && arg[1] == '-' && isupper((unsigned char)arg[2]) &&
           strchr(arg, '.') != NULL && strchr(arg, '=') != NULL;
}

/* --ip='*' is --ip=*: lists of arguments in profiles keep the quotes that traitlets wanted once. */
static void unquote_value(char *arg)
{
    char *value = strchr(arg, '=');
    const size_t size = value ? strlen(++value) : 0;
    if (size < 2 || strchr("'\"", value[0]) == NULL || value[size - 1] != value[0])
        return;
    memmove(value, value + 1, size - 2);
    value[size - 2] = 0;
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
                     : px_fail(err, PX_EINVAL,
                               "db_class: no such task database: %.100s: there are DictDB, "
                               "SQLiteDB or NoDB",
                               settings->db_class);
}

/* "leastload, lru, ... or pure": the names from the table of schemes. */
static void describe_schemes(char *out, size_t size)
{
    size_t used = 0;
    for (size_t i = 0; px_scheme_at(i) != NULL && used < size; i++)
        used +=
            (size_t)snprintf(out + used, size - used, "%s%s", i ? ", " : "", px_scheme_at(i)->name);
    if (used < size)
        snprintf(out + used, size - used, " or pure");
}

static int check(const struct px_settings *settings, struct px_error *err)
{
    struct px_port_pool pool;
    if (px_scheme_find(settings->scheme) == NULL && !px_scheme_is_pure(settings->scheme)) {
        char schemes[256];
        describe_schemes(schemes, sizeof(schemes));
        return px_fail(err, PX_EINVAL, "no such scheme: %.100s: there are %s", settings->scheme,
                       schemes);
    }
    if (settings->port > 65535)
        return px_fail(err, PX_EINVAL, "there is no port %d", settings->port);
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

/* As px_options_main(), with the help that only the table of schemes knows. */
static int parse_options(int argc, char **argv, struct px_settings *out)
{
    char schemes[256], help[300];
    struct px_option rows[PX_COUNT(options)];
    struct px_usage described = usage;
    describe_schemes(schemes, sizeof(schemes));
    snprintf(help, sizeof(help), "%s (%s)", schemes, px_scheme_at(0)->name);
    memcpy(rows, options, sizeof(rows));
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        if (rows[i].name != NULL && strcmp(rows[i].name, "scheme") == 0)
            rows[i].help = help;
    }
    described.options = rows;
    return px_options_main(&described, argc, argv, out);
}

/* Over the defaults; `first` is what the command line says of which files there are. */
static int read_files(const struct px_settings *first, const char *profile_dir,
                      struct px_settings *out, struct px_error *err)
{
    *out = defaults;
    int rc = px_config_profile(profile_dir, "ipcontroller", NULL, px_settings_trait, out, err);
    if (first->config_file != NULL)
        out->config_file = first->config_file;
    if (first->key_file != NULL)
        out->key_file = first->key_file;
    if (rc == 0)
        rc = px_settings_files(out, err);
    out->config_file = out->key_file = NULL; /* they may be `first`'s */
    return rc;
}

static int read_all(int plain, char **argv, int count, struct px_settings *out,
                    char profile_dir[PX_PATH_SIZE], struct px_error *err)
{
    struct px_settings first = defaults;
    int end = parse_options(plain, argv, &first);
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
    if (rc == 0)
        rc = read_files(&first, profile_dir, out, err);
    px_settings_fini(&first);
    if (rc != 0 || apply_db_class(out, err) != 0)
        return -1;
    out->db_class = NULL;
    apply_environment(out);
    parse_options(plain, argv, out);
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
    for (int i = 1; i < argc; i++)
        unquote_value(argv[i]);
    int plain = part_arguments(argc, argv, parted);
    int rc = read_all(plain, parted, argc - plain, out, profile_dir, err);
    free(parted);
    if (rc == 0 && out->work_dir != NULL && out->work_dir[0] != 0 && chdir(out->work_dir) != 0)
        return px_fail(err, PX_EIO, "cannot change to %.200s", out->work_dir);
    return rc;
}
