/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The launcher for engines on other hosts, through the system's ssh and its configuration.
 *
 *     ssh [--launch-arg...] HOST "exec sh -c '...' sh pxengine ..."      one a host
 *         stdin     the connection file, on one line; its end ends the engines
 *         stdout    "open", then the fork server's lines (local.c)
 *         stderr    log
 *
 * Nothing secret is on a command line or, for pxengine, on a disk over there; other programs get
 * the connection as a file of mode 0600 that is removed when they end. ssh hands its words to the
 * other side's login shell, so each is quoted, by one function.
 *
 * Where the controller listens on loopback only, ssh carries its ports: each becomes a socket
 * in /tmp over there, which sshd makes with mode 0600, so that it is nobody else's; engines find
 * the controller at ipc:///tmp/px-<random>:<port>.
 *
 * A set that a cluster file names and nobody watches (ipcluster's, or one whose pxcluster was
 * killed) is asked after, and signalled, by ssh HOST kill.
 */
#define _GNU_SOURCE
#include "proxy.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ASK_MS 10000     /* for `ssh HOST kill` */
#define ASK_EVERY_MS 500 /* while a set that nobody watches is being ended */
#define OPENING 8        /* connections at once: sshd refuses some above 10, as a gateway's may */
#define PATIENCE 3       /* times that a host may not answer before its engines are given up */

/* $0 program, $1 sockets, then its arguments. The program is looked for in PATH where it is not
 * where ours is. */
#define RUN_OURS                                                                                   \
    "echo open; IFS= read -r IPP_CONNECTION_INFO || exit 1; export IPP_CONNECTION_INFO; p=$0; "    \
    "t=$1; shift; "                                                                                \
    "command -v \"$p\" >/dev/null 2>&1 || p=${p##*/}; "                                            \
    "\"$p\" \"$@\" 3>&1 1>&2; s=$?; [ -z \"$t\" ] || rm -f \"$t\":*; exit $s"

/* $0 how many, $1 sockets, then a command. */
#define RUN_OTHERS                                                                                 \
    "echo open; IFS= read -r c || exit 1; t=$1; shift; umask 077; f=$(mktemp) || exit 1; "         \
    "printf \"%s\" \"$c\" >\"$f\"; exec 3>&1 4<&0 1>&2; i=0; p=; "                                 \
    "while [ $i -lt $0 ]; do \"$@\" --file=\"$f\" 3>&- 4<&- & p=\"$p $!\"; "                       \
    "echo \"started $!\" >&3; i=$((i+1)); done; "                                                  \
    "(read -r x <&4; kill -TERM $p) >/dev/null 2>&1 3>&- & w=$!; wait $p; s=$?; kill $w; "         \
    "rm -f \"$f\"; [ -z \"$t\" ] || rm -f \"$t\":*; exit $s"

struct ssh_set {
    struct px_proxy_set proxies;
    struct px_set_spec spec; /* what it points to outlives the set */
    size_t next;             /* host of it, to be started */
    /* Of a restored set: who watches it (pid 0: nobody), or what its hosts answered last. */
    struct px_process supervisor;
    int64_t asked_ms;
    size_t running;
    bool stopping; /* no further host is started */
    int silent;    /* times, while being ended, that a host did not answer */
};

static struct ssh_set *ssh_of(const struct px_set *set)
{
    return (struct ssh_set *)set;
}

/* Of a set's state: its words for ssh. What the user gave comes first, for ssh takes the first
 * value that it sees. A connection that the user shares is used, but none is left behind to be
 * shared (ControlPersist): until OpenSSH 8.5 that kept our pipe for complaints, so that no command
 * seemed to end. */
static void add_ssh(struct px_argv *argv, const json_t *state)
{
    static const char *const usual[] = {"-T",
                                        "-oBatchMode=yes",
                                        "-oControlMaster=no",
                                        "-oConnectTimeout=10",
                                        "-oServerAliveInterval=15",
                                        NULL};
    static const char *const keys[] = {"ssh_cmd", "ssh_args"};
    size_t index;
    json_t *word;
    for (size_t i = 0; i < PX_COUNT(keys); i++)
        json_array_foreach(json_object_get(state, keys[i]), index, word)
            if (json_is_string(word))
                px_argv_add(argv, json_string_value(word));
    px_argv_add_all(argv, usual);
}

/* ---- asking ---- */

/* ssh HOST "command": what it wrote, or NULL. */
static char *ask(const json_t *state, const char *host, const char *command)
{
    struct px_argv argv = {0};
    struct px_buf out = {0}, complaints = {0};
    struct px_error err;
    add_ssh(&argv, state);
    px_argv_add(&argv, "--");
    px_argv_add(&argv, host);
    px_argv_add(&argv, command);
    const int status =
        argv.count > 3 ? px_run_program(argv.items, ASK_MS, &out, &complaints, &err) : 255;
    if (status != 0)
        px_log(PX_DEBUG, "ssh.ask", "host=%s status=%d why=\"%.200s\"", host, status,
               complaints.size ? complaints.data : "");
    px_argv_fini(&argv);
    px_buf_fini(&complaints);
    if (status != 0) {
        px_buf_fini(&out);
        return NULL;
    }
    px_buf_text(&out, "");
    return out.data;
}

/* Signals engines over there. */
static void signal_far(const struct px_proxy *proxy, int signo)
{
    struct px_buf command = {0};
    px_buf_printf(&command, "kill -%d", signo);
    size_t count = 0;
    for (size_t i = 0; i < proxy->engine_count; i++)
        if (!proxy->engines[i].ended && ++count)
            px_buf_printf(&command, " %ld", (long)proxy->engines[i].pid);
    if (count)
        free(ask(proxy->set->state, proxy->label, command.data));
    px_buf_fini(&command);
}

/* Marks the engines of a host that have ended; those of one that does not answer run, for all that
 * is known. */
static size_t look_far(struct px_proxy *proxy)
{
    struct px_buf command = {0};
    size_t running = 0;
    px_buf_text(&command, "for p in");
    for (size_t i = 0; i < proxy->engine_count; i++)
        px_buf_printf(&command, " %ld", (long)proxy->engines[i].pid);
    px_buf_text(&command, "; do kill -0 $p 2>/dev/null && echo \" $p \"; done; true");
    char *answer = ask(proxy->set->state, proxy->label, command.data);
    struct ssh_set *set = ssh_of(&proxy->set->base);
    const bool given_up = !answer && proxy->asked && ++set->silent >= PATIENCE;
    if (given_up)
        px_log(PX_ERROR, "ssh.silent", "host=%s effect=\"its engines may still run\"",
               proxy->label);
    for (size_t i = 0; i < proxy->engine_count; i++) {
        char pid[32];
        snprintf(pid, sizeof pid, " %ld ", (long)proxy->engines[i].pid);
        proxy->engines[i].ended = given_up || (answer && !strstr(answer, pid));
        running += !proxy->engines[i].ended;
    }
    free(answer);
    px_buf_fini(&command);
    return running;
}

/* ---- starting ---- */

/* The ports of a connection that listens on loopback, as -R options; and where they come out. */
static void add_tunnels(struct px_argv *argv, json_t *connection, const char *prefix)
{
    static const char *const options[] = {"-oExitOnForwardFailure=yes", "-oControlPath=none", NULL};
    const char *key;
    json_t *value, *port;
    size_t index;
    const char *listens = json_string_value(json_object_get(connection, "interface")),
               *host = listens && strchr(listens, '[') ? "[::1]" : "127.0.0.1";
    px_argv_add_all(argv, options);
    json_object_foreach(connection, key, value) {
        json_t *ports = json_is_array(value) ? json_incref(value) : json_pack("[O]", value);
        json_array_foreach(ports, index, port) {
            if (!json_is_integer(port))
                continue;
            const long long number = json_integer_value(port);
            px_argv_add_new(argv, px_format("-R%s\\:%lld:%s:%lld", prefix, number, host, number));
        }
        json_decref(ports);
    }
    char *interface = px_format("ipc://%s", prefix);
    json_object_set_new(connection, "interface", json_string(interface));
    free(interface);
}

/* What the host's login shell is given. */
static int build_command(const struct px_set_spec *spec, int count, const char *prefix,
                         struct px_buf *out, struct px_error *err)
{
    const bool ours = px_command_is_ours(spec->command);
    struct px_argv argv = {0};
    struct px_set_spec here = *spec;
    here.count = count;
    if (px_argv_program(&argv, &here, err) < 0)
        return -1;
    const char *name = strrchr(spec->place->profile_dir, '/');
    if (ours) { /* startup files, where there are any */
        if (name && strncmp(name, "/profile_", 9) == 0)
            px_argv_add_new(&argv, px_format("--profile=%s", name + 9));
        px_argv_add(&argv, "--stop-on-eof");
    }
    px_argv_options(&argv, &here, ours ? 3 : -1);
    char number[16];
    snprintf(number, sizeof number, "%d", count);
    px_buf_text(out, "exec sh -c");
    px_argv_quote(out, ours ? RUN_OURS : RUN_OTHERS);
    size_t first = 0;
    px_argv_quote(out, ours ? argv.items[first++] : number);
    px_argv_quote(out, prefix);
    for (size_t i = first; i < argv.count; i++)
        px_argv_quote(out, argv.items[i]);
    px_argv_fini(&argv);
    return 0;
}

static int send_connection(struct px_proxy *proxy, const json_t *connection, struct px_error *err)
{
    char *text = json_dumps(connection, JSON_COMPACT), *line = px_format("%s\n", text);
    const size_t size = strlen(line); /* less than a pipe takes */
    /* An ssh that has ended already says why, and is reported as one that ends later is. */
    const ssize_t put = write(proxy->stdin_fd, line, size);
    const bool sent = put == (ssize_t)size || (put < 0 && errno == EPIPE);
    free(line);
    free(text);
    return sent ? 0 : px_fail(err, PX_EIO, "%.100s: cannot send the connection", proxy->label);
}

static int start_host(struct px_proxy_set *set, const struct px_set_spec *spec, size_t index,
                      struct px_error *err)
{
    const struct px_host *host = &spec->hosts[index];
    json_t *connection = px_engine_connection(spec->place, err);
    struct px_argv argv = {0};
    struct px_buf command = {0};
    char *log = px_set_log_path(spec, (int)index), prefix[64] = "";
    int result = connection ? 0 : -1;
    add_ssh(&argv, set->state);
    if (result == 0 && px_connection_is_local(connection)) {
        uint64_t random[2];
        px_random(random, sizeof random);
        snprintf(prefix, sizeof prefix, "/tmp/px-%016llx%016llx", (unsigned long long)random[0],
                 (unsigned long long)random[1]);
        add_tunnels(&argv, connection, prefix);
    }
    if (result == 0)
        result = build_command(spec, host->count, prefix, &command, err);
    if (result == 0) {
        px_argv_add(&argv, "--");
        px_argv_add(&argv, host->name);
        px_argv_add(&argv, command.data);
        const struct px_proxy_spec proxy_spec = {.argv = argv.items,
                                                 .label = host->name,
                                                 .log = log,
                                                 .count = host->count,
                                                 .talks = true};
        struct px_proxy *proxy = px_proxy_start(set, &proxy_spec, err);
        result = proxy ? send_connection(proxy, connection, err) : -1;
    }
    json_decref(connection);
    px_argv_fini(&argv);
    px_buf_fini(&command);
    free(log);
    return result;
}

/* The part of the state that ssh's users chose, in ipyparallel's terms. */
static json_t *make_state(const struct px_set_spec *spec, struct px_error *err)
{
    struct px_argv words = {0};
    if (px_argv_split(&words, spec->launch_command ? spec->launch_command : "ssh", err) < 0)
        return NULL;
    json_t *command = json_array(), *args = json_array();
    for (size_t i = 0; i < words.count; i++)
        json_array_append_new(command, json_string(words.items[i]));
    for (const char *const *arg = spec->launch_args; arg && *arg; arg++)
        json_array_append_new(args, json_string(*arg));
    px_argv_fini(&words);
    return json_pack("{s:s, s:s, s:o, s:o, s:s}", "cluster_id", spec->place->cluster_id,
                     "profile_dir", spec->place->profile_dir, "ssh_args", args, "ssh_cmd", command,
                     "state", "running");
}

static void ssh_reason(const char *text, char *out, size_t size)
{
    char line[300];
    px_last_line(text, line, sizeof line);
    const char *from = strncmp(line, "ssh: ", 5) == 0 ? line + 5 : line;
    /* A log line of pxengine's explains nothing by itself: its tail is shown. */
    if (!strstr(line, " level="))
        snprintf(out, size, "%s", from);
}

/* Starts further hosts, as long as not too many are being connected to. */
static int start_some(struct ssh_set *set, struct px_error *err)
{
    struct px_proxy_set *proxies = &set->proxies;
    size_t opening = 0;
    for (size_t i = 0; i < proxies->proxy_count; i++)
        opening += !proxies->proxies[i]->heard && !proxies->proxies[i]->ended;
    for (; opening < OPENING && set->spec.hosts[set->next].name; set->next++) {
        if (set->spec.hosts[set->next].count == 0)
            continue;
        if (start_host(proxies, &set->spec, set->next, err) < 0)
            return -1;
        opening++;
    }
    return 0;
}

static void on_settled(struct px_proxy_set *proxies)
{
    struct ssh_set *set = ssh_of(&proxies->base);
    struct px_error err;
    if (set->stopping || start_some(set, &err) == 0)
        return;
    set->stopping = true; /* no more of them: what could not be started now cannot be later */
    for (; set->spec.hosts[set->next].name; set->next++)
        proxies->base.lost += set->spec.hosts[set->next].count;
    proxies->events.ended(&proxies->base, 0, err.text, proxies->events.ctx);
}

static struct px_set *ssh_start(const struct px_launcher_ops *ops, const struct px_set_spec *spec,
                                struct px_error *err)
{
    struct px_proxy_set *set = px_proxy_set_create(ops, spec, sizeof(struct ssh_set));
    set->reason = ssh_reason;
    set->settled = on_settled;
    set->base.speaks = px_command_is_ours(spec->command);
    set->state = make_state(spec, err);
    ssh_of(&set->base)->spec = *spec;
    if (set->state && start_some(ssh_of(&set->base), err) == 0)
        return &set->base;
    return px_proxy_abandon(set);
}

/* ---- the cluster file ---- */

static struct px_proxy *host_of(struct px_proxy_set *set, const char *host)
{
    for (size_t i = 0; i < set->proxy_count; i++)
        if (strcmp(set->proxies[i]->label, host) == 0)
            return set->proxies[i];
    px_proxy_adopt(set, (struct px_process){0}, "");
    struct px_proxy *proxy = set->proxies[set->proxy_count - 1];
    free(proxy->label);
    proxy->label = px_strdup(host);
    return proxy;
}

/* One process over there: hostname, user and pid. */
static void restore_one(struct px_proxy_set *set, const json_t *state)
{
    const char *name = json_string_value(json_object_get(state, "hostname"));
    const char *user = json_string_value(json_object_get(state, "user"));
    const json_int_t pid = json_integer_value(json_object_get(state, "pid"));
    if (!name || !name[0] || name[0] == '-' || pid <= 1 || pid > INT32_MAX)
        return;
    char *host = user && user[0] ? px_format("%s@%s", user, name) : px_strdup(name);
    struct px_proxy *proxy = host_of(set, host);
    proxy->engines = px_realloc(proxy->engines, (proxy->engine_count + 1) * sizeof *proxy->engines);
    proxy->engines[proxy->engine_count++] = (struct px_far_engine){.pid = (pid_t)pid};
    free(host);
}

/* A set, or a controller of ipcluster's. */
static struct px_set *ssh_restore(const struct px_launcher_ops *ops, const json_t *state,
                                  double written, const struct px_process *supervisor)
{
    struct px_proxy_set *set = px_proxy_set_create(ops, NULL, sizeof(struct ssh_set));
    const char *key;
    json_t *engine, *engines = json_object_get(state, "engines");
    (void)written;
    if (supervisor)
        ssh_of(&set->base)->supervisor = *supervisor;
    set->state = json_deep_copy(state);
    if (!engines)
        restore_one(set, state);
    json_object_foreach(engines, key, engine)
        restore_one(set, engine);
    return &set->base;
}

/* Keys in ipyparallel's order. */
static json_t *save_engine(const json_t *state, const char *host, const char *log, pid_t pid)
{
    const char *at = strrchr(host, '@');
    char *user = at ? px_strndup(host, (size_t)(at - host)) : px_strdup("");
    json_t *engine = json_pack(
        "{s:O, s:s, s:i, s:s, s:i, s:O, s:s, s:s, s:s, s:[], s:[s], s:O, s:O, s:s, s:s}",
        "cluster_id", json_object_get(state, "cluster_id"), "hostname", at ? at + 1 : host, "n", 1,
        "output_file", log, "pid", (int)pid, "profile_dir", json_object_get(state, "profile_dir"),
        "remote_output_file", "", "remote_profile_dir", "", "remote_python", "python3", "scp_args",
        "scp_cmd", "scp", "ssh_args", json_object_get(state, "ssh_args"), "ssh_cmd",
        json_object_get(state, "ssh_cmd"), "state", "running", "user", user);
    free(user);
    return engine;
}

static json_t *ssh_save(const struct px_set *base)
{
    const struct ssh_set *set = ssh_of(base);
    const json_t *state = set->proxies.state;
    if (!set->proxies.loop)
        return json_deep_copy(state);
    json_t *engines = json_object();
    for (size_t i = 0; i < set->proxies.proxy_count; i++) {
        const struct px_proxy *proxy = set->proxies.proxies[i];
        for (size_t j = 0; j < proxy->engine_count; j++) {
            char *key = px_format("%s/%zu", proxy->label, j);
            if (!proxy->engines[j].ended)
                json_object_set_new(
                    engines, key,
                    save_engine(state, proxy->label, proxy->log, proxy->engines[j].pid));
            free(key);
        }
    }
    const int count = (int)json_object_size(engines);
    return json_pack("{s:O, s:o, s:s, s:i, s:i, s:O, s:s, s:s, s:[], s:[s], s:O, s:O, s:s, s:s}",
                     "cluster_id", json_object_get(state, "cluster_id"), "engines", engines,
                     "hostname", "", "n", count, "pid", -1, "profile_dir",
                     json_object_get(state, "profile_dir"), "remote_profile_dir", "",
                     "remote_python", "python3", "scp_args", "scp_cmd", "scp", "ssh_args",
                     json_object_get(state, "ssh_args"), "ssh_cmd",
                     json_object_get(state, "ssh_cmd"), "state", "running", "user", "");
}

/* ---- signalling and ends ---- */

/* The end of its stdin ends a host's engines; what then still runs is killed over there. */
static void ssh_signal(struct px_set *base, int signo)
{
    struct ssh_set *set = ssh_of(base);
    if (set->supervisor.pid)
        return; /* who ends it */
    set->stopping = set->stopping || signo == SIGTERM || signo == SIGKILL;
    for (size_t i = 0; i < set->proxies.proxy_count; i++) {
        struct px_proxy *proxy = set->proxies.proxies[i];
        if (proxy->ended)
            continue;
        proxy->asked = proxy->asked || signo == SIGTERM || signo == SIGKILL;
        if (signo == SIGTERM && proxy->child)
            px_proxy_close_stdin(proxy);
        else
            signal_far(proxy, signo);
        if (signo == SIGKILL && proxy->child)
            px_process_signal_group(proxy->process, SIGKILL);
    }
    set->asked_ms = 0;
}

static size_t ssh_refresh(struct px_set *base)
{
    struct ssh_set *set = ssh_of(base);
    if (set->proxies.loop)
        return px_proxy_refresh(base);
    if (set->supervisor.pid) /* once that is gone, so are the ends of the engines' stdin */
        return px_process_alive(set->supervisor) ? set->proxies.proxy_count : 0;
    const int64_t now = px_now_ms();
    if (set->asked_ms && now - set->asked_ms < ASK_EVERY_MS)
        return set->running;
    set->running = 0;
    for (size_t i = 0; i < set->proxies.proxy_count; i++) {
        struct px_proxy *proxy = set->proxies.proxies[i];
        const size_t running = proxy->ended ? 0 : look_far(proxy);
        proxy->ended = running == 0;
        set->running += running;
    }
    set->asked_ms = px_now_ms();
    return set->running;
}

const struct px_launcher_ops px_ssh_launcher = {
    .name = "ssh",
    .title = "SSH",
    .start = ssh_start,
    .restore = ssh_restore,
    .save = ssh_save,
    .signal = ssh_signal,
    .refresh = ssh_refresh,
    .tail = px_proxy_tail,
    .missing = px_proxy_missing,
    .destroy = px_proxy_destroy,
};
