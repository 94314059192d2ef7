/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * launch: what the files of pxcluster share. One process, one thread, one loop.
 *
 *     main.c         the commands
 *     start.c        the commands start and engines: options, checks, --daemonize
 *     supervisor.c   start a controller and engines, watch them, stop them
 *     report.c       what it tells
 *     adapt.c        engines that come and go as there is work; policy.c, asker.c
 *     stop.c         stop clusters found through their files
 *     list.c         list clusters
 *     status.c       what a running controller says about itself
 *     usage.c        what its engines use
 *     clean.c        remove logs and files that dead clusters left
 *     background.c   --daemonize: fork, and tell the waiting parent how it went
 *     confirm.c      a client's view: are the engines there?
 *     files.c        wait for connection files, where a controller says nothing else
 *     stopper.c      end sets of processes in order, with patience, then without
 *     local.c        the launcher for processes on this host
 *     ssh.c          engines on other hosts, through ssh
 *     mpi.c          engines under mpiexec
 *     batch.c        engines in the queue of Slurm, PBS, SGE or HTCondor
 *     queues.c       what differs among these
 *     template.c     a job's script from one of the user's
 *     proxy.c        what ssh.c and mpi.c share: local processes that stand for engines
 *     hosts.c        which host gets how many engines
 *     logs.c         what logs tell
 *     lines.c        what other processes say, line by line
 *     argv.c         command lines of controllers and engines
 *     config.c       options that a profile's ipcluster_config.py sets
 *     process.c      one process: start it, is it still the same one, signal it
 *     clusterfile.c  cluster-<id>.json, shared with ipcluster
 *
 * A launcher is a row of functions (struct px_launcher_ops) for one way of running
 * programs; controller and engines are sets of the same kind. A set comes from `start`, or
 * from `restore`, which reads what a cluster file says about it.
 */
#ifndef PX_LAUNCH_H
#define PX_LAUNCH_H

#include "base/base.h"
#include "loop/loop.h"
#include "wire/wire.h"

#include <jansson.h>
#include <sys/types.h>

/* Exit statuses beyond 0, 1 and 2: ipcluster's. */
enum { PX_ALREADY_RUNNING = 10, PX_NOT_RUNNING = 11, PX_NO_CLUSTER = 12 };

#define PX_STOP_GRACE_MS 5000 /* from SIGTERM to SIGKILL; ipyparallel's stop_seconds_until_kill */

/* ---- which cluster -------------------------------------------------------- */

/* The options that every command has. */
struct px_common_options {
    const char *profile, *profile_dir, *ipython_dir, *cluster_id;
    int log_level;
};
#define PX_COMMON_DEFAULTS                                                                         \
    {                                                                                              \
        .log_level = PX_INFO                                                                       \
    }
/* clang-format off */
#define PX_COMMON_ROWS(owner, member) \
    {.type = PX_OPT_HEADING, .help = "Which cluster"}, \
    {"profile", 0, PX_OPT_STRING, offsetof(owner, member.profile), 0, "NAME", \
     "profile name (default: default)", 0, 0}, \
    {"profile-dir", 0, PX_OPT_STRING, offsetof(owner, member.profile_dir), 0, "DIR", \
     "profile directory, instead of a name", 0, 0}, \
    {"ipython-dir", 0, PX_OPT_STRING, offsetof(owner, member.ipython_dir), 0, "DIR", \
     "where profiles live (default: $IPYTHONDIR or ~/.ipython)", 0, 0}, \
    {"cluster-id", 0, PX_OPT_STRING, offsetof(owner, member.cluster_id), 0, "ID", \
     "tells several clusters of one profile apart (default: none)", 0, 0}, \
    {"log-level", 0, PX_OPT_LEVEL, offsetof(owner, member.log_level), 0, "LEVEL", \
     "debug, info, warn, error or 10 to 40 (default: info)", 0, 0}, \
    {"debug", 0, PX_OPT_SET, offsetof(owner, member.log_level), PX_DEBUG, NULL, \
     "the same as --log-level=debug", 0, 0}, \
    {"quiet", 0, PX_OPT_SET, offsetof(owner, member.log_level), PX_ERROR, NULL, \
     "the same as --log-level=error", 0, 0}
/* clang-format on */

/* A cluster's place on disk; paths are absolute. */
struct px_place {
    char profile_dir[PX_PATH_SIZE];
    char cluster_id[128];
    char file[PX_PATH_SIZE];        /* cluster-<id>.json */
    char client_file[PX_PATH_SIZE]; /* ipcontroller[-<id>]-client.json */
    char engine_file[PX_PATH_SIZE];
};
/* With `create`, makes a profile that is missing. PX_ENOENT, PX_EINVAL, PX_EIO. */
PX_MUST_USE int px_place_find(const struct px_common_options *options, bool create,
                              struct px_place *out, struct px_error *err);
/* The place in another profile directory, or of another cluster id. */
PX_MUST_USE int px_place_make(const char *profile_dir, const char *cluster_id, struct px_place *out,
                              struct px_error *err);

/* ---- one process ------------------------------------------------------------ */

/* A pid alone can come to mean another process; with the time of its start it cannot. */
struct px_process {
    pid_t pid;
    uint64_t started; /* clock ticks since boot; 0: not known */
};

struct px_spawn {
    char *const *argv; /* argv[0] is looked for in PATH unless it has a slash */
    const char *log;   /* gets stdout and stderr, at its end */
    int keep_fd;       /* stays open in the new process under the same number; -1: none */
    /* Of this process, for the new one's stdin and stdout; 0: /dev/null, the log. */
    int in_fd, out_fd;
    char *const *env; /* "NAME=VALUE" besides ours, ends with NULL; may be NULL */
};
/*
 * Starts a program in a session of its own, with default signal handling and no further
 * descriptor but keep_fd. It gets SIGTERM should this process die first. PX_ENOENT
 * names the program that could not be run.
 */
PX_MUST_USE int px_process_spawn(const struct px_spawn *spawn, struct px_process *out,
                                 struct px_error *err);
/* The process that has this pid now. False if there is none, or a zombie. */
bool px_process_find(pid_t pid, struct px_process *out);
/* Whether it still runs: same pid, same start, not a zombie. */
bool px_process_alive(struct px_process process);
/* Whether it runs a program of this name. */
bool px_process_is(struct px_process process, const char *name);
/* Whether it is what `state` in a file of that time means: older than the file or, as clocks are
 * set, called with the state's profile_dir and cluster_id. */
bool px_process_is_meant(struct px_process process, const json_t *state, double written);
/* When it started, in seconds of the wall clock. */
double px_process_start_time(struct px_process process);
/* The parent, grandparent or its parent that is a program called `name`. */
bool px_process_ancestor(struct px_process process, const char *name, struct px_process *out);
/* Signals it, unless it is gone or has become another. */
void px_process_signal(struct px_process process, int signo);
/* Signals all of its session that share its process group; while it, even as a zombie, exists. */
void px_process_signal_group(struct px_process process, int signo);
/* Signals those of its children that run a program of this name, else their children, and so on;
 * with NULL all of them. Returns how many. */
size_t px_process_signal_descendants(struct px_process process, const char *name, int signo);
/* Closes every descriptor from 3 up, except the `count` at `keep` (-1 in it stands for none). */
void px_close_descriptors(const int *keep, size_t count);
/* The path of `program` beside this one, or its name alone, for PATH. Caller frees. */
char *px_program_path(const char *program);

/* ---- logs ---------------------------------------------------------------------- */

/* Appends the last lines of a log, set off under its name; nothing where it is empty. */
void px_log_tail(const char *path, struct px_buf *out);
/* Whether a line of it holds `text`. */
bool px_log_says(const char *path, const char *text);

/* ---- lines (lines.c) ------------------------------------------------------------ */

typedef void px_line_fn(void *ctx, const char *line);
/* Calls `fn` with each whole line, without its end, of what is in `rest` and then in `bytes`; an
 * unfinished one stays in `rest`. Of one that is too long the start, 16 MB. */
void px_lines_take(struct px_buf *rest, const char *bytes, size_t size, px_line_fn *fn, void *ctx);
/* The same of one read from `fd`. Returns 1, 0 when there is nothing for now, -1 at the end. */
int px_lines_read(int fd, struct px_buf *rest, px_line_fn *fn, void *ctx);

enum px_report_kind {
    PX_REPORT_NONE,
    PX_REPORT_STARTED,
    PX_REPORT_REGISTERED,
    PX_REPORT_EXITED,
};
/* A line of a fork server's. */
struct px_report {
    enum px_report_kind kind;
    int id;          /* registered */
    pid_t pid;       /* 2 at least */
    const char *why; /* exited: within the line */
};
struct px_report px_report_read(const char *line);

/* ---- sets of processes --------------------------------------------------------- */

struct px_set;
struct px_batch;
struct px_launcher_ops;

struct px_set_events {
    /* An engine says that it is registered. */
    void (*registered)(struct px_set *set, int engine, pid_t pid, void *ctx);
    /* The controller says that it is ready. */
    void (*ready)(struct px_set *set, void *ctx);
    /* A member ended that nobody had asked to; `why` is a phrase. With `pid` 0 it says who. */
    void (*ended)(struct px_set *set, pid_t pid, const char *why, void *ctx);
    void *ctx;
};

/* A host, and how many engines it gets. */
struct px_host {
    char *name; /* for ssh: [user@]host, or a name from its configuration */
    int count;  /* 0: not said */
};

enum px_set_kind { PX_CONTROLLER_SET, PX_ENGINE_SET };

/* What a queue is asked for besides room for engines; NULL: nothing said. */
struct px_job_wishes {
    const char *queue, *account, *time;
    const char *script; /* the user's, as a template; it says how many engines there are */
    bool array;         /* a job for each engine */
};

struct px_set_spec {
    enum px_set_kind kind;
    int count;               /* engines */
    const char *command;     /* the user's words for the program; NULL: ours */
    const char *const *args; /* further arguments, ends with NULL; may be NULL */
    const struct px_place *place;
    const char *set_id; /* engines: names the set in the cluster file */
    int log_level;
    /* Of launchers that start engines through another program: ssh, mpiexec, sbatch, … */
    const char *launch_command;     /* the user's words for that; NULL: its usual name */
    const char *const *launch_args; /* further arguments for it, ends with NULL; may be NULL */
    const struct px_host *hosts;    /* ends with a name of NULL; may be NULL */
    struct px_job_wishes job;
    struct px_loop *loop;           /* outlives the set */
    struct px_set_events events;
};

/* The words of a command; ends with NULL once it has one. */
struct px_argv {
    char **items;
    size_t count;
};
void px_argv_add(struct px_argv *argv, const char *item);
void px_argv_add_new(struct px_argv *argv, char *item);
void px_argv_add_all(struct px_argv *argv, const char *const *items); /* ends with NULL; or NULL */
/* Words as a shell would split them, without running anything. */
PX_MUST_USE int px_argv_split(struct px_argv *argv, const char *command, struct px_error *err);
/* The command that starts one process of the set. `ready_fd` < 0: it is not told one. */
PX_MUST_USE int px_argv_build(struct px_argv *argv, const struct px_set_spec *spec, int ready_fd,
                              struct px_error *err);
/* Its two parts that do not name this host's directories: the program, and its options. */
PX_MUST_USE int px_argv_program(struct px_argv *argv, const struct px_set_spec *spec,
                                struct px_error *err);
void px_argv_options(struct px_argv *argv, const struct px_set_spec *spec, int ready_fd);
void px_argv_fini(struct px_argv *argv);
/* Appends one word, whatever is in it, for a shell; after a space where there is something. */
void px_argv_quote(struct px_buf *out, const char *word);
/* Whether `command` (NULL: the default) runs one of our programs. */
bool px_command_is_ours(const char *command);
/* The log of process `index`, < 0: of all, named as ipyparallel's. Caller frees. */
char *px_set_log_path(const struct px_set_spec *spec, int index);

/* Appends what --host says. PX_EINVAL. */
PX_MUST_USE int px_hosts_add(struct px_host **hosts, const char *list, struct px_error *err);
PX_MUST_USE int px_hosts_read(struct px_host **hosts, const char *path, struct px_error *err);
/* Settles how many of `n` engines (< 0: what the hosts take) each host gets; returns n, or -1. */
PX_MUST_USE int px_hosts_share(struct px_host *hosts, int n, struct px_error *err);
void px_hosts_fini(struct px_host *hosts); /* NULL allowed */

struct px_launcher_ops {
    const char *name;  /* as in --engines and in the cluster file's "class" */
    const char *title; /* as `list` shows it, ipcluster's */
    /* Of launchers that queue jobs, their queue (batch.h): members come when it lets them, which can
     * take long. NULL: not one of these. */
    const struct px_batch *batch;
    /* Starts the processes; `ops` is this row. PX_ENOENT, PX_EIO; then nothing runs. */
    struct px_set *(*start)(const struct px_launcher_ops *ops, const struct px_set_spec *spec,
                            struct px_error *err);
    /* The set a cluster file's `state` speaks of, as far as it runs still. `written` is the
     * file's time of change in seconds; what started later is another process. `supervisor`:
     * the pxcluster that started the set and runs still; or NULL. */
    struct px_set *(*restore)(const struct px_launcher_ops *ops, const json_t *state,
                              double written, const struct px_process *supervisor);
    /* The state for the cluster file; new reference. */
    json_t *(*save)(const struct px_set *set);
    /* Asks the whole set. SIGKILL leaves nothing of it. */
    void (*signal)(struct px_set *set, int signo);
    /* Looks which members have ended, reaps them and tells `events`. Returns how many run. */
    size_t (*refresh)(struct px_set *set);
    /* Appends the last lines of the members' logs, each set off under the log's name. */
    void (*tail)(const struct px_set *set, struct px_buf *out);
    /* Appends a line for each engine that runs and has not registered: its process and its log.
     * For sets of this process's own engines. */
    void (*missing)(const struct px_set *set, struct px_buf *out);
    /* Lets go of the set; does not touch its processes. */
    void (*destroy)(struct px_set *set);
};

/* Every launcher's own struct starts with this. */
struct px_set {
    const struct px_launcher_ops *ops;
    bool speaks; /* its programs tell when they are ready or registered */
    pid_t pid;   /* stands for the set in the cluster file; -1: each member has its own */
    int lost;    /* engines that ended, or cannot come any more */
};

extern const struct px_launcher_ops px_local_launcher, px_ssh_launcher, px_mpi_launcher,
    px_slurm_launcher, px_pbs_launcher, px_sge_launcher, px_condor_launcher;
/* The launcher of that name, of ipyparallel's class of that name, in any case; or NULL. */
const struct px_launcher_ops *px_launcher_find(const char *name);
#define PX_QUEUE_NAMES "slurm, pbs or sge" /* where there are several to choose from */
#define PX_BATCH_NAMES "slurm, pbs, sge or htcondor"
#define PX_LAUNCHER_NAMES "local, ssh, mpi, " PX_BATCH_NAMES
void px_set_destroy(struct px_set *set); /* NULL allowed */

/* A set of one process that is not this one's child. */
struct px_set *px_local_adopt(struct px_process process);

/* ---- configuration ---------------------------------------------------------------- */

/* What of a configuration is wanted. */
struct px_config_wish {
    const struct px_launcher_ops *launcher; /* whose settings count; NULL: the one that it names */
    const char *python;                     /* to run it with; NULL: as engines would choose */
    bool with_controller;                   /* the controller's settings, too */
    bool hosts_known;                       /* its hosts are not wanted */
};
/*
 * Appends what ipcluster_config.py and .json in a profile directory set: to `options` as options of
 * `pxcluster start` or `engines`, to `rest` what is for the controller's command line. Settings of
 * the launcher that have no effect here are named on stderr. Blocks for the time that Python takes,
 * 20 s at most, where there is such a file with settings in it. PX_EINVAL: it fails, or a value is
 * none of its kind; PX_EIO: Python does not run, or not to its end.
 */
PX_MUST_USE int px_launch_config(const char *profile_dir, const struct px_config_wish *wish,
                                 struct px_argv *options, struct px_argv *rest,
                                 struct px_error *err);
/*
 * Whether an ipcontroller with these arguments (ending with NULL, or NULL) keeps its connection
 * files for the next one: by them, or by ipcontroller_config.py or .json of the profile directory.
 * Where those cannot be read the controller itself says why: false. Blocks like px_launch_config.
 */
bool px_launch_keeps_files(const char *profile_dir, const char *python, const char *const *args);

/* ---- stopping -------------------------------------------------------------------- */

struct px_stopper;

/*
 * Ends the sets one after the other: SIGTERM, then SIGKILL once `grace_ms` have passed for
 * that set. Looks every 20 ms, and whenever px_stopper_check is called, which is allowed while the
 * loop runs. Calls `done` once, when nothing runs. The sets stay the caller's.
 */
struct px_stopper *px_stopper_start(struct px_loop *loop, struct px_set *const *sets, size_t count,
                                    int64_t grace_ms, px_loop_fn *done, void *ctx);
void px_stopper_check(struct px_stopper *stopper);
void px_stopper_hurry(struct px_stopper *stopper);   /* SIGKILL from now on */
void px_stopper_destroy(struct px_stopper *stopper); /* NULL allowed */

/* ---- cluster files ------------------------------------------------------------------ */

/*
 * {"cluster": {...}, "controller": {"class", "state"}, "engines": {"class", "sets": {...}}}
 * as ipyparallel.cluster.Cluster writes and reads it: no key more, because
 * ipcluster rewrites a file whose keys it does not know.
 */
json_t *px_clusterfile_read(const char *path, double *written, struct px_error *err);
/* Serialises changes among pxclusters: holds the profile's lock until px_clusterfile_unlock. */
PX_MUST_USE int px_clusterfile_lock(const struct px_place *place, struct px_error *err);
void px_clusterfile_unlock(int lock);

/* ipyparallel's state of a process. `n` < 0 and `log` NULL leave these out. */
json_t *px_process_state(const char *profile_dir, const char *cluster_id, int n, const char *log,
                         pid_t pid);

/* What one supervisor contributes. */
struct px_contribution {
    const struct px_launcher_ops *launcher;
    const struct px_set *controller; /* or NULL */
    const struct px_set *engines;    /* or NULL */
    const char *set_id;
    int n;
    const char *ip, *location;          /* or NULL */
    const char *const *controller_args; /* ends with NULL; or NULL */
};
/* Puts it into the file, beside what others have there; with a controller, the file begins anew. */
PX_MUST_USE int px_clusterfile_put(const struct px_place *place,
                                   const struct px_contribution *contribution,
                                   struct px_error *err);
/* Takes out the controller with this pid (0: none) and the set; removes the file with the last. */
void px_clusterfile_withdraw(const struct px_place *place, pid_t controller, const char *set_id);
/* Removes the file that held `seen`, of which nothing runs. Of one that has changed since, it takes
 * out what `seen` names. With the lock. */
void px_clusterfile_remove(const struct px_place *place, const json_t *seen);

/* The members of a cluster that still run, from its file. */
struct px_cluster {
    json_t *file;              /* pruned: what has ended is left out */
    struct px_set *controller; /* NULL: not running */
    struct px_set **engines;   /* sets */
    size_t engine_sets;
    size_t engine_count;              /* running engines */
    const char *launcher;             /* of the engines; may be one that we do not have */
    const char *foreign;              /* the class of a part we cannot reach; NULL: none */
    struct px_process supervisors[8]; /* the pxclusters that watch over parts of it */
    size_t supervisor_count;
};
PX_MUST_USE int px_cluster_load(const char *path, struct px_cluster *out, struct px_error *err);
bool px_cluster_runs(const struct px_cluster *cluster);
void px_cluster_fini(struct px_cluster *cluster);

/* ---- telling the user ------------------------------------------------------------------ */

/*
 * Forks. The parent passes on what the child says and exits with the status that the child
 * gives, or when the child dies; it never returns. The child returns 0 in its own session,
 * with stderr in `log`, and *channel set to the descriptor that reaches the parent. When that
 * becomes readable the parent is gone. Of the caller's descriptors `keep_fd` stays open (-1: none).
 */
PX_MUST_USE int px_background(const char *log, int keep_fd, int *channel, struct px_error *err);
void px_background_say(int channel, const char *text);
void px_background_done(int channel, int status); /* the parent exits; closes the channel */

/* ---- waiting for what others do ----------------------------------------------------------- */

struct px_confirm_events {
    void (*connected)(void *ctx);               /* a client has connected */
    void (*seen)(int count, void *ctx);         /* it sees so many of those wanted now */
    void (*failed)(const char *why, void *ctx); /* it will not see all; the last call */
    void *ctx;
};
struct px_confirm;
/*
 * Forks a client that connects to the cluster at `place` and waits until it sees `count` engines
 * more than `counted_from`; with that < 0, than when it had connected.
 */
struct px_confirm *px_confirm_start(struct px_loop *loop, const struct px_place *place,
                                    int counted_from, int count, int64_t timeout_ms,
                                    const struct px_confirm_events *events, struct px_error *err);
void px_confirm_end(struct px_confirm *confirm);     /* kills and reaps it; NULL allowed */
void px_confirm_destroy(struct px_confirm *confirm); /* as well; not inside its callbacks */

struct px_files;
/* Calls `fn` once, when both connection files are there and whole. */
struct px_files *px_files_wait(struct px_loop *loop, const struct px_place *place, px_loop_fn *fn,
                               void *ctx, struct px_error *err);
void px_files_destroy(struct px_files *files); /* NULL allowed; not inside `fn` */

/* ---- supervising ------------------------------------------------------------------------ */

/* Engines that come and go as there is work. */
struct px_adapt_limits {
    int least, most; /* most 0: the number of engines stays */
    int64_t idle_ms; /* after so long without work an engine ends */
};

/* What to start, and how to tell of it. */
struct px_plan {
    const struct px_place *place;
    const struct px_launcher_ops *launcher;
    bool with_controller;       /* false: engines for a cluster that is there */
    int n;                      /* engines; 0 is allowed with a controller, and with `adapt` */
    struct px_adapt_limits adapt;
    int64_t timeout_ms;         /* for all of them to register */
    int at_least;               /* when time is up, or some have failed, so many do */
    const char *launch_command; /* as in px_set_spec, as the next three */
    const char *const *launch_args;
    const struct px_host *hosts;
    struct px_job_wishes job;
    const char *controller_command, *engine_command; /* NULL: ours */
    const char *const *controller_args;              /* ends with NULL; after --ip and --location */
    bool drops_files; /* connection files are removed before the controller starts, after it ends */
    const char *const *engine_args;
    const char *ip, *location; /* for the cluster file; NULL: not given */
    int log_level;
    const char *log;  /* a background process's own; NULL: none */
    bool clean_logs;  /* remove those of this cluster's earlier lives */
    int channel;      /* to the parent of a background process; -1: in the foreground */
    int ready_fd;     /* gets "ready <n>\n"; -1: none */
    bool stop_on_eof; /* end with standard input */
    int parent_fd;    /* end when it becomes readable; -1: none */
};
/* Returns when nothing of it runs any more: the exit status. */
int px_supervise(const struct px_plan *plan);

/* ---- commands ------------------------------------------------------------------------------ */

/* argv[0] is the command's name. Each returns the exit status. */
int px_command_start(int argc, char **argv);
int px_command_engines(int argc, char **argv);
int px_command_stop(int argc, char **argv);
int px_command_list(int argc, char **argv);
int px_command_status(int argc, char **argv);
int px_command_clean(int argc, char **argv);

struct phalanx_client;
/* Adds to each engine of the hub's status, where it answers in time, "memory_bytes" (its own and
 * its children's), "cpu_percent" (of one processor, since anybody's question before) and
 * "host_memory_percent". Waits. */
void px_add_usage(struct phalanx_client *client, int64_t timeout_ms, json_t *status);

/* Removes the logs of earlier clusters of this place, but not `keep` (a path, or NULL). */
void px_clean_logs(const struct px_place *place, const char *keep);

/* Below, a function that returns anything but 0 ends the walk, which returns that. */

typedef int px_cluster_fn(const char *profile_dir, const char *path, void *ctx);
/* Every cluster file of a profile, sorted. */
int px_each_cluster_in(const char *profile_dir, px_cluster_fn *fn, void *ctx);
/* Says on stderr which clusters of a profile run, a line each, to who asked for another. */
void px_say_what_runs(const char *profile_dir);
/* Every profile directory: the one that `options` names, or else all in the IPython directory. */
int px_each_profile(const struct px_common_options *options,
                    int (*fn)(const char *profile_dir, void *ctx), void *ctx);

#endif
