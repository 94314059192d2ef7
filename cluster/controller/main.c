/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pxcontroller: the controller of a cluster. Reads settings, binds all sockets, starts the
 * traffic thread, writes the connection files, says that it is ready, and runs the hub on this
 * thread until it is told to stop. Exit codes: 0 stopped, 1 failed, 2 misused.
 *
 * Which part runs on which thread is decided here and nowhere else: the hub on the main thread,
 * which also gets the signals, everything of px_traffic on another, and with --sqlitedb the
 * writing of the task database on a third.
 */
#include "hub.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* Three threads that allocate (hub, traffic, ZeroMQ's own): an arena each, and no more. */
static void tune_memory(void)
{
    mallopt(M_ARENA_MAX, 3);
}

/* An engine holds some eight connections: a thousand of them are beyond the usual limits, and five
 * thousand beyond what some systems allow unless root asks. */
#define MOST_FILES (1u << 20)

/*
 * Before ZeroMQ starts its threads: these block all signals, but only once they run, and a
 * SIGTERM that met one before that would end the process with its files left behind. The hub
 * reads the signals from a descriptor. Nor does a log that nobody reads any more end it.
 */
static void block_signals(void)
{
    sigset_t signals;
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGUSR1);
    if (!px_hangup_ignored())
        sigaddset(&signals, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
}

static void *traffic_thread(void *ctx)
{
    struct px_error err;
    prctl(PR_SET_NAME, "traffic"); /* seen in top -H */
    if (px_traffic_run(ctx, &err) != 0)
        px_die(1, "traffic: %s", err.text);
    return NULL;
}

static void *store_thread(void *ctx)
{
    prctl(PR_SET_NAME, "database");
    px_store_run(ctx);
    return NULL;
}

/* The database on disk and its thread. Without one, *store stays NULL. */
static int open_store(const struct px_settings *settings, const char *profile_dir,
                      struct px_store **store, pthread_t *thread, struct px_error *err)
{
    if (settings->db != PX_DB_SQLITE)
        return 0;
    char *path = px_format("%s/%s", settings->sqlite_dir ? settings->sqlite_dir : profile_dir,
                           settings->sqlite_file);
    struct px_store_limits limits = {.records = (size_t)settings->disk_records,
                                     .bytes = settings->disk_bytes,
                                     .cull_fraction = settings->cull_fraction,
                                     .is_synced = settings->synced != 0};
    struct px_store *opened = px_store_open(path, &limits, err);
    free(path);
    if (opened == NULL)
        return -1;
    if (pthread_create(thread, NULL, store_thread, opened) != 0) {
        px_store_close(opened);
        return px_fail(err, PX_EIO, "cannot start a thread");
    }
    *store = opened;
    return 0;
}

static void close_store(struct px_store *store, pthread_t thread)
{
    if (store == NULL)
        return;
    px_store_stop(store);
    pthread_join(thread, NULL);
    px_store_close(store);
}

static void say_ready(int fd)
{
    if (fd < 0)
        return;
    if (write(fd, "ready\n", 6) != 6)
        px_log(PX_WARN, "ready-unsaid", "fd=%d", fd);
    close(fd);
}

static void announce(const struct px_sockets *sockets, const char *profile_dir)
{
    px_log(PX_INFO, "listening", "Hub listening on %s:%d for registration.",
           sockets->engine.interface, sockets->engine.registration);
    px_log(PX_INFO, "profile", "dir=%s", profile_dir);
}

/* Everything between bound sockets and the end. Returns -1 with the reason. */
static int serve(struct px_sockets *sockets, const struct px_settings *settings,
                 const char *profile_dir, struct px_error *err)
{
    struct px_link link;
    struct px_traffic *traffic = NULL;
    struct px_hub *hub = NULL;
    struct px_store *store = NULL;
    pthread_t thread, writer = 0;
    int rc = -1;
    if (px_link_init(&link, err) != 0 ||
        open_store(settings, profile_dir, &store, &writer, err) != 0)
        goto done;
    hub = px_hub_create(sockets, &link, store, settings, err);
    if (hub == NULL || (settings->restore && px_hub_restore(hub, err) != 0))
        goto done;
    struct px_traffic_config config = {.sockets = sockets,
                                       .link = &link,
                                       .key = sockets->client.key,
                                       .signature_scheme = sockets->client.signature_scheme,
                                       .scheme = settings->scheme,
                                       .hwm = settings->hwm,
                                       .ping_ms = settings->ping_ms,
                                       .max_misses = settings->max_misses,
                                       .restored = settings->restore != 0};
    traffic = px_traffic_create(&config, err);
    if (traffic == NULL)
        goto done;
    if (pthread_create(&thread, NULL, traffic_thread, traffic) != 0) {
        px_fail(err, PX_EIO, "cannot start a thread");
        goto done;
    }
    rc = px_sockets_write_files(sockets, err);
    if (rc == 0) {
        announce(sockets, profile_dir);
        say_ready(settings->ready_fd);
        rc = px_hub_run(hub, err);
    }
    px_link_order(&link, &(struct px_order){.kind = PX_ORDER_STOP});
    pthread_join(thread, NULL);

done:
    px_traffic_destroy(traffic);
    px_hub_drain(hub);
    px_hub_destroy(hub); /* posts what is not written yet */
    close_store(store, writer);
    px_link_fini(&link);
    return rc;
}

/* What is logged and what a library prints goes to the profile, as with ipcontroller. */
static int log_to_file(const char *profile_dir, struct px_error *err)
{
    char *path = px_format("%s/log/ipcontroller-%ld.log", profile_dir, (long)getpid());
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    int rc = fd >= 0 && dup2(fd, STDERR_FILENO) >= 0
                 ? 0
                 : px_fail(err, PX_EIO, "%s: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
    free(path);
    return rc;
}

int main(int argc, char **argv)
{
    static struct px_sockets sockets;
    struct px_settings settings;
    char profile_dir[PX_PATH_SIZE];
    struct px_error err;
    px_program_begin();
    px_log_init("IPController", PX_INFO);
    tune_memory();
    if (px_settings_read(argc, argv, &settings, profile_dir, &err) != 0)
        px_die(err.code == PX_EINVAL || err.code == PX_ENOENT ? 2 : 1, "%s", err.text);
    if (settings.log_to_file && log_to_file(profile_dir, &err) != 0)
        px_die(1, "%s", err.text);
    px_log_init("IPController", (enum px_level)settings.log_level);
    umask(077); /* keys, code and results are this user's */
    block_signals();
    px_allow_files(MOST_FILES);
    int rc = px_sockets_bind(&sockets, &settings, profile_dir, &err);
    if (rc == 0)
        rc = serve(&sockets, &settings, profile_dir, &err);
    px_sockets_fini(&sockets, &settings);
    px_settings_fini(&settings);
    if (rc != 0)
        px_die(1, "%s", err.text);
    px_log(PX_INFO, "stopped", NULL);
    return 0;
}
