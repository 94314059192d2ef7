/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * client: the start and the end of a client, and the questions that callers ask about engines.
 */
#define _GNU_SOURCE
#include "client/client.h"
#include "protocol.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

static const struct {
    enum px_code code;
    enum phalanx_code shown;
} code_rows[] = {
    {PX_EINVAL, PHALANX_EINVAL}, {PX_EAUTH, PHALANX_EINVAL}, {PX_ELIMIT, PHALANX_EINVAL},
    {PX_ENOENT, PHALANX_ENOENT}, {PX_ETIME, PHALANX_ETIME},  {PX_ECLOSED, PHALANX_ECLOSED},
    {PX_EINTR, PHALANX_EINTR},
};

static void show_error(struct phalanx_error *out, const struct px_error *err)
{
    if (!out)
        return;
    out->code = PHALANX_EIO;
    for (size_t i = 0; i < PX_COUNT(code_rows); i++) {
        if (code_rows[i].code == err->code)
            out->code = code_rows[i].shown;
    }
    memcpy(out->text, err->text, sizeof out->text);
}

/* ---- connecting ---------------------------------------------------------------- */

static int start_thread(struct phalanx_client *client, struct px_error *err)
{
    client->loop = px_loop_create();
    client->bell = px_doorbell_create(err);
    if (!client->bell)
        return -1;
    px_io_attach(client);
    /* Signals are for the threads that wait, never for this one. */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    const int status = pthread_create(&client->thread, NULL, px_io_main, client);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (status != 0)
        return px_fail(err, PX_EIO, "cannot start a thread: %s", strerror(status));
    client->running = true;
    pthread_setname_np(client->thread, "phalanx-io");
    return 0;
}

/* How many forks lie between the first process that connected and this one. Asking costs nothing,
 * unlike getpid(), which every call would make several times. */
static unsigned forks;

static void after_fork(void)
{
    forks++;
}

static void watch_forks(void)
{
    (void)pthread_atfork(NULL, NULL, after_fork); /* without memory a child goes unnoticed */
}

static unsigned count_forks(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    return forks;
}

static void run_wake(struct phalanx_client *client, struct px_command *command, bool dead)
{
    (void)command; /* the client's own, never freed */
    if (!dead)
        px_io_send_held(client);
}

static struct phalanx_client *client_create(void)
{
    struct phalanx_client *client = px_alloc(sizeof *client);
    client->forks = count_forks();
    client->held.wake.run = run_wake;
    atomic_init(&client->refs, 1);
    pthread_mutex_init(&client->session_lock, NULL);
    pthread_mutex_init(&client->lock, NULL);
    return client;
}

phalanx_client *phalanx_connect(const struct phalanx_options *options, struct phalanx_error *err)
{
    static const struct phalanx_options defaults = {0};
    struct px_error why = {0};
    struct phalanx_client *client = client_create();
    if (px_client_dial(client, options ? options : &defaults, &why) == 0 &&
        start_thread(client, &why) == 0)
        return client;
    show_error(err, &why);
    phalanx_close(client);
    return NULL;
}

/* ---- closing ---------------------------------------------------------------------- */

bool px_client_inherited(const struct phalanx_client *client)
{
    return client->forks != forks;
}

void px_client_ref(struct phalanx_client *client)
{
    atomic_fetch_add(&client->refs, 1);
}

void px_client_unref(struct phalanx_client *client)
{
    if (atomic_fetch_sub(&client->refs, 1) != 1)
        return;
    px_session_destroy(client->out);
    px_session_destroy(client->in);
    px_engines_fini(&client->engines);
    px_doorbell_destroy(client->bell, NULL);
    pthread_mutex_destroy(&client->lock);
    pthread_mutex_destroy(&client->session_lock);
    free(client);
}

/* Takes the command, unless the thread is stopping. Lock held. */
static bool post(struct phalanx_client *client, struct px_command *command)
{
    if (client->stopping)
        return false;
    px_doorbell_post(client->bell, command);
    return true;
}

void px_client_wake(struct phalanx_client *client)
{
    if (!client->held.head || client->held.woken)
        return;
    client->held.woken = true;
    post(client, &client->held.wake);
}

void px_client_submit(struct phalanx_client *client, struct px_command *command, bool urgent)
{
    command->next = NULL;
    if (client->held.tail)
        client->held.tail->next = command;
    else
        client->held.head = command;
    client->held.tail = command;
    if (++client->held.count >= PX_HELD_MOST || urgent || !client->held.napping)
        px_client_wake(client);
}

struct result_command {
    struct px_command command;
    struct phalanx_result *result;
    void (*run)(struct phalanx_client *, struct phalanx_result *);
};

static void run_result_command(struct phalanx_client *client, struct px_command *command, bool dead)
{
    struct result_command *self = (struct result_command *)command;
    if (!dead)
        self->run(client, self->result);
    if (self->result)
        px_result_unref(self->result);
    free(self);
}

bool px_client_post_result(struct phalanx_client *client, struct phalanx_result *result,
                           void (*run)(struct phalanx_client *, struct phalanx_result *))
{
    struct result_command *self = px_alloc(sizeof *self);
    *self = (struct result_command){
        .command = {.run = run_result_command}, .result = result, .run = run};
    if (post(client, &self->command))
        return true;
    free(self);
    return false;
}

static void wake_engine_waiters(struct phalanx_client *client)
{
    struct px_waiter *waiter;
    DL_FOREACH(client->engine_waiters, waiter)
        sem_post(&waiter->sem);
}

static void stop_thread(struct phalanx_client *client)
{
    pthread_mutex_lock(&client->lock);
    px_client_post_result(client, NULL, px_io_close);
    client->closed = true;
    client->stopping = true;
    wake_engine_waiters(client);
    pthread_mutex_unlock(&client->lock);
    pthread_join(client->thread, NULL);
    for (struct px_command *command; (command = px_doorbell_take(client->bell));)
        command->run(client, command, true);
}

void phalanx_close(phalanx_client *client)
{
    if (!client || px_client_inherited(client))
        return; /* see phalanx_forget */
    if (client->running)
        stop_thread(client);
    /* What was asked of a controller that cannot be reached would be waited with. */
    const bool vain = !client->running || client->away_ms;
    px_loop_destroy(client->loop);
    for (int i = 0; i < PX_CHANNEL_COUNT; i++) {
        if (vain && client->sockets[i])
            px_socket_set_linger(client->sockets[i], 0);
        px_socket_destroy(client->monitors[i]);
        px_socket_destroy(client->sockets[i]);
    }
    if (client->context)
        px_context_destroy(client->context);
    px_client_unref(client);
}

void phalanx_hold(phalanx_client *client)
{
    px_client_ref(client);
}

void phalanx_release(phalanx_client *client)
{
    if (!px_client_inherited(client))
        px_client_unref(client);
}

void phalanx_forget(phalanx_client *client)
{
    /* The thread does not exist in this process, and ZeroMQ's sockets must not be touched by it;
     * locks may have been held by others at the fork. So memory is all there is to give
     * back, and that is shared with the parent until somebody writes: it is left alone. */
    (void)client;
}

/* ---- engines ------------------------------------------------------------------------ */

const char *phalanx_session(const phalanx_client *client)
{
    return client->session_id;
}

const char *phalanx_file(const phalanx_client *client)
{
    return client->file;
}

bool phalanx_away(const phalanx_client *client, int64_t *since_ms, int64_t *left_ms)
{
    const int64_t away_ms = px_client_inherited(client) ? 0 : client->away_ms;
    if (away_ms == 0 || client->closed)
        return false;
    const int64_t now_ms = px_now_ms();
    *since_ms = now_ms - away_ms;
    *left_ms = client->give_up_ms > now_ms ? client->give_up_ms - now_ms : 0;
    return true;
}

const char *phalanx_version(void)
{
    return PX_VERSION;
}

size_t phalanx_engines(phalanx_client *client, int *ids, size_t most)
{
    return phalanx_engines_with(client, NULL, ids, most);
}

size_t phalanx_engines_with(phalanx_client *client, const char *feature, int *ids, size_t most)
{
    size_t count;
    if (px_client_inherited(client))
        return 0;
    pthread_mutex_lock(&client->lock);
    int *all = px_engines_ids(&client->engines, feature, &count);
    pthread_mutex_unlock(&client->lock);
    const size_t shown = count < most ? count : most;
    if (shown)
        memcpy(ids, all, shown * sizeof *ids);
    free(all);
    return count;
}

enum phalanx_code phalanx_engine_uuid(phalanx_client *client, int id, char *uuid, size_t size)
{
    if (px_client_inherited(client))
        return PHALANX_ECLOSED;
    pthread_mutex_lock(&client->lock);
    const struct px_engine *engine = px_engines_find_id(&client->engines, id);
    if (engine)
        snprintf(uuid, size, "%s", engine->uuid);
    pthread_mutex_unlock(&client->lock);
    return engine ? PHALANX_OK : PHALANX_ENOENT;
}

/* Lock held. */
static bool all_offer(const struct px_engines *engines, const char *feature)
{
    for (const struct px_engine *e = engines->by_uuid; e; e = e->by_uuid.next) {
        if (e->alive && !px_engine_has(e, feature))
            return false;
    }
    return engines->alive > 0;
}

/* Lock held. Asked with every task, answered anew when the engines have changed. */
static bool all_offer_still(struct phalanx_client *client, const char *feature)
{
    if (strlen(feature) >= sizeof client->asked.feature)
        return all_offer(&client->engines, feature);
    if (client->asked.changes != client->engines.changes ||
        strcmp(client->asked.feature, feature) != 0) {
        strcpy(client->asked.feature, feature);
        client->asked.changes = client->engines.changes;
        client->asked.offered = all_offer(&client->engines, feature);
    }
    return client->asked.offered;
}

bool phalanx_feature(phalanx_client *client, const int *targets, size_t count, const char *feature)
{
    if (px_client_inherited(client))
        return false;
    pthread_mutex_lock(&client->lock);
    bool offered = targets ? count > 0 : all_offer_still(client, feature);
    for (size_t i = 0; targets && i < count && offered; i++) {
        const struct px_engine *engine = px_engines_find_id(&client->engines, targets[i]);
        offered = engine && engine->alive && px_engine_has(engine, feature);
    }
    pthread_mutex_unlock(&client->lock);
    return offered;
}

char *phalanx_engine_features(phalanx_client *client, int id)
{
    if (px_client_inherited(client))
        return NULL;
    pthread_mutex_lock(&client->lock);
    const struct px_engine *engine = px_engines_find_id(&client->engines, id);
    char *text = NULL;
    if (engine && engine->alive)
        text = engine->features ? json_dumps(engine->features, JSON_COMPACT) : px_strdup("[]");
    pthread_mutex_unlock(&client->lock);
    return text;
}

enum phalanx_code phalanx_wait_engines(phalanx_client *client, size_t count, int64_t timeout_ms)
{
    if (px_client_inherited(client))
        return PHALANX_ECLOSED;
    const int64_t deadline = px_deadline(timeout_ms);
    struct px_waiter waiter = {0};
    sem_init(&waiter.sem, 0, 0);
    px_client_ref(client); /* it may be closed meanwhile */
    pthread_mutex_lock(&client->lock);
    DL_APPEND(client->engine_waiters, &waiter);
    px_client_post_result(client, NULL, px_io_watch);
    enum phalanx_code code = PHALANX_OK;
    while (client->engines.alive < count && !client->closed && code == PHALANX_OK) {
        pthread_mutex_unlock(&client->lock);
        code = px_waiter_sleep(&waiter, deadline);
        pthread_mutex_lock(&client->lock);
    }
    if (client->engines.alive >= count)
        code = PHALANX_OK;
    else if (client->closed)
        code = PHALANX_ECLOSED;
    DL_DELETE(client->engine_waiters, &waiter);
    pthread_mutex_unlock(&client->lock);
    sem_destroy(&waiter.sem);
    px_client_unref(client);
    return code;
}
