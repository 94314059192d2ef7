/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * spool: files in a private temporary directory, for output that was left out.
 *
 *     $TMPDIR/phalanx-output-<pid>-XXXXXX/stdout-1.txt
 *
 * A thread of its own writes them, as neither the thread that answers heartbeats nor one that
 * holds a language's lock may wait for a disk. Text waits for it in memory, PENDING_FULL bytes as
 * a rule, PENDING_MOST whatever happens; what is beyond that, beyond the limit of all files or on a
 * full disk is not kept, and px_spool_describe() says so.
 *
 * Files outlive their process: a notebook that was run by a program is read later. The next process
 * that needs a directory removes those of ended ones: what is older than a week, and the oldest
 * when there are many. A directory is locked (flock) as long as its owner or a child of that lives.
 */
#define _GNU_SOURCE
#include "output.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PREFIX "phalanx-output-"
#define PENDING_FULL (1u << 20)
#define PENDING_MOST (8u << 20)
#define WORTH_WRITING (128u << 10) /* until then the thread is not woken */
#define MOST_FILES 64              /* a program may flood request after request */
#define MOST_LEFT 8                /* directories of processes that have ended */
#define LEFT_S (7 * 24 * 3600)     /* how long they are kept */

struct px_spool_file {
    struct px_spool_file *next;
    const char *name; /* the beginning of its name */
    char *path;       /* NULL until the thread has made it */
    int fd;
    struct px_buf pending;
    uint64_t kept; /* bytes written or pending, of the total */
    bool writing;  /* the thread does */
    bool cut;      /* some text is not here */
    bool released; /* nobody adds to it any more */
    char why[128]; /* it was cut */
};

struct px_spool {
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    pthread_t thread;
    bool running, stopping;
    bool urgent;     /* somebody waits for all that is pending */
    char *parent;    /* where the directory is made */
    char *directory; /* NULL: none yet */
    int lock_fd;     /* the directory, locked */
    uint64_t most, total;
    atomic_size_t pending; /* written under the lock */
    long opened, files;
    struct px_spool_file *first; /* the youngest */
    struct px_buf spare;         /* memory that the next text uses again */
};

struct px_spool *px_spool_create(uint64_t most)
{
    struct px_spool *spool = px_alloc(sizeof *spool);
    const char *given = getenv("TMPDIR"); /* later the user's code may change the environment */
    spool->parent = px_strdup(given && given[0] == '/' ? given : "/tmp");
    spool->most = most;
    spool->lock_fd = -1;
    pthread_mutex_init(&spool->lock, NULL);
    pthread_cond_init(&spool->work, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&spool->done, &attributes);
    pthread_condattr_destroy(&attributes);
    return spool;
}

/* ---- the directory ---- */

/* With what is in it. */
static bool remove_directory(int parent, const char *name, int fd)
{
    DIR *dir = fdopendir(dup(fd));
    struct dirent *entry;
    while (dir && (entry = readdir(dir)))
        if (entry->d_name[0] != '.')
            unlinkat(fd, entry->d_name, 0);
    if (dir)
        closedir(dir);
    return unlinkat(parent, name, AT_REMOVEDIR) == 0;
}

/* The descriptor of a directory of ours whose process has ended, locked; -1: it is none. */
static int open_left(int parent, const char *name, time_t *since)
{
    int pid;
    struct stat about;
    if (sscanf(name, PREFIX "%d-", &pid) != 1 || pid <= 0 || kill(pid, 0) == 0 || errno != ESRCH)
        return -1;
    const int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0 && fstat(fd, &about) == 0 && about.st_uid == geteuid() &&
        flock(fd, LOCK_EX | LOCK_NB) == 0) {
        *since = about.st_mtime;
        return fd;
    }
    if (fd >= 0)
        close(fd);
    return -1;
}

/* Removes the oldest directory that is left, if its time has come. False when there is nothing more
 * to remove. */
static bool remove_one_left(DIR *dir)
{
    char oldest[NAME_MAX + 1] = "";
    time_t oldest_since = 0, since;
    int count = 0, fd;
    rewinddir(dir);
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (strncmp(entry->d_name, PREFIX, sizeof PREFIX - 1) != 0 ||
            (fd = open_left(dirfd(dir), entry->d_name, &since)) < 0)
            continue;
        close(fd);
        if (count++ == 0 || since < oldest_since) {
            oldest_since = since;
            strcpy(oldest, entry->d_name);
        }
    }
    if (count <= MOST_LEFT && (count == 0 || time(NULL) - oldest_since <= LEFT_S))
        return false;
    fd = open_left(dirfd(dir), oldest, &since);
    if (fd < 0)
        return false; /* somebody else is at it */
    const bool removed = remove_directory(dirfd(dir), oldest, fd);
    close(fd);
    return removed;
}

static void remove_left_ones(const char *parent)
{
    DIR *dir = opendir(parent);
    while (dir && remove_one_left(dir))
        ;
    if (dir)
        closedir(dir);
}

/* 0, or an errno. */
static int make_directory(struct px_spool *spool)
{
    if (spool->directory)
        return 0;
    remove_left_ones(spool->parent);
    char *path = px_format("%s/" PREFIX "%d-XXXXXX", spool->parent, (int)getpid());
    if (!mkdtemp(path)) {
        const int why = errno;
        free(path);
        return why;
    }
    spool->directory = path;
    spool->lock_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (spool->lock_fd >= 0)
        (void)flock(spool->lock_fd, LOCK_EX | LOCK_NB);
    return 0;
}

/* 0, or an errno. `path` is then the caller's. */
static int make_file(struct px_spool *spool, const char *name, int *fd, char **path)
{
    const int why = make_directory(spool);
    if (why)
        return why;
    *path = px_format("%s/%s-%ld.txt", spool->directory, name, ++spool->opened);
    *fd = open(*path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0600);
    if (*fd >= 0)
        return 0;
    const int failed = errno;
    free(*path);
    *path = NULL;
    return failed;
}

/* ---- with the lock held: files ---- */

static void cut(struct px_spool_file *file, const char *why)
{
    if (!file->cut)
        snprintf(file->why, sizeof file->why, "%s", why);
    file->cut = true;
}

static void free_file(struct px_spool *spool, struct px_spool_file *file)
{
    struct px_spool_file **at = &spool->first;
    while (*at != file)
        at = &(*at)->next;
    *at = file->next;
    if (file->fd >= 0)
        close(file->fd);
    px_buf_fini(&file->pending);
    free(file->path);
    free(file);
}

/* Removes the oldest file on disk, but not this one. */
static bool remove_oldest(struct px_spool *spool, const struct px_spool_file *but)
{
    struct px_spool_file *oldest = NULL;
    for (struct px_spool_file *file = spool->first; file; file = file->next)
        if (file != but && file->fd >= 0 && file->pending.size == 0 && !file->writing)
            oldest = file;
    if (!oldest)
        return false;
    unlink(oldest->path);
    close(oldest->fd);
    oldest->fd = -1;
    spool->total -= oldest->kept;
    spool->files--;
    oldest->kept = 0;
    oldest->cut = false; /* whatever the reason was, this is the one now */
    cut(oldest, "it had to make room for later output");
    if (oldest->released)
        free_file(spool, oldest);
    return true;
}

/* ---- the thread ---- */

static struct px_spool_file *next_work(struct px_spool *spool)
{
    const bool now = spool->urgent || spool->stopping || spool->pending >= PENDING_FULL;
    const size_t least = now ? 1 : WORTH_WRITING;
    struct px_spool_file *file = spool->first;
    while (file && file->pending.size < least)
        file = file->next;
    if (!file)
        spool->urgent = false;
    return file;
}

/* Fresh memory costs more than the copy into it. */
static void give_spare(struct px_spool *spool, struct px_buf *memory)
{
    px_buf_fini(&spool->spare);
    if (memory->capacity <= 4 * PENDING_FULL)
        spool->spare = *memory;
    else
        px_buf_fini(memory);
}

/* The lock is not held. 0, or an errno, with how much the file holds then. */
static int write_text(struct px_spool *spool, struct px_spool_file *file, const struct px_buf *text,
                      int *fd, char **path, uint64_t *held)
{
    struct stat about;
    int why = file->path ? 0 : make_file(spool, file->name, fd, path);
    if (!why && px_fd_write(*fd, px_buf_span(text)) < 0)
        why = errno;
    *held = why && *fd >= 0 && fstat(*fd, &about) == 0 ? (uint64_t)about.st_size : 0;
    return why;
}

/* With the lock held: the file ends where the disk took no more. */
static void end_file(struct px_spool *spool, struct px_spool_file *file, const char *why,
                     uint64_t held)
{
    cut(file, why);
    spool->pending -= file->pending.size;
    px_buf_clear(&file->pending);
    if (held < file->kept) {
        spool->total -= file->kept - held;
        file->kept = held;
    }
}

/* With the lock held, which is given up while the disk is waited for. */
static void write_pending(struct px_spool *spool, struct px_spool_file *file)
{
    struct px_buf text = file->pending;
    int fd = file->fd;
    char *path = NULL;
    uint64_t held;
    file->pending = spool->spare;
    spool->spare = (struct px_buf){0};
    file->writing = true;
    pthread_mutex_unlock(&spool->lock);
    const int why = write_text(spool, file, &text, &fd, &path, &held);
    pthread_mutex_lock(&spool->lock);
    file->writing = false;
    if (path) {
        file->path = path;
        file->fd = fd;
        spool->files++;
    }
    if (why)
        end_file(spool, file, strerror(why), held);
    spool->pending -= text.size;
    px_buf_clear(&text);
    give_spare(spool, &text);
    while (spool->files > MOST_FILES && remove_oldest(spool, file))
        continue;
    if (file->released && file->fd < 0 && file->pending.size == 0)
        free_file(spool, file);
    pthread_cond_broadcast(&spool->done);
}

static void *writer(void *ctx)
{
    struct px_spool *spool = ctx;
    pthread_mutex_lock(&spool->lock);
    for (;;) {
        struct px_spool_file *file = next_work(spool);
        if (file) {
            write_pending(spool, file);
            continue;
        }
        if (spool->stopping)
            break;
        pthread_cond_wait(&spool->work, &spool->lock);
    }
    pthread_mutex_unlock(&spool->lock);
    return NULL;
}

/* With the lock held. Signals are for the language's thread. */
static int start(struct px_spool *spool)
{
    if (spool->running)
        return 0;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int why = pthread_create(&spool->thread, NULL, writer, spool);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    spool->running = why == 0;
    return why;
}

void px_spool_destroy(struct px_spool *spool)
{
    if (!spool)
        return;
    pthread_mutex_lock(&spool->lock);
    spool->stopping = true;
    pthread_cond_broadcast(&spool->work);
    pthread_mutex_unlock(&spool->lock);
    if (spool->running)
        pthread_join(spool->thread, NULL);
    while (spool->first)
        free_file(spool, spool->first);
    px_buf_fini(&spool->spare);
    if (spool->directory)
        (void)rmdir(spool->directory); /* it stays when there is something in it */
    if (spool->lock_fd >= 0)
        close(spool->lock_fd);
    free(spool->directory);
    free(spool->parent);
    pthread_cond_destroy(&spool->work);
    pthread_cond_destroy(&spool->done);
    pthread_mutex_destroy(&spool->lock);
    free(spool);
}

/* ---- text ---- */

struct px_spool_file *px_spool_open(struct px_spool *spool, const char *name)
{
    struct px_spool_file *file = px_alloc(sizeof *file);
    file->fd = -1;
    file->name = name;
    pthread_mutex_lock(&spool->lock);
    const int why = start(spool);
    if (why)
        cut(file, strerror(why));
    file->next = spool->first;
    spool->first = file;
    pthread_mutex_unlock(&spool->lock);
    return file;
}

/* With the lock held: how much of `size` more bytes the file may have. */
static size_t room(struct px_spool *spool, struct px_spool_file *file, size_t size)
{
    while (spool->total + size > spool->most && remove_oldest(spool, file))
        continue;
    if (spool->total + size > spool->most) {
        cut(file, "that is the limit");
        size = spool->total < spool->most ? (size_t)(spool->most - spool->total) : 0;
    }
    if (spool->pending + size > PENDING_MOST) {
        cut(file, "the disk was too slow");
        size = 0;
    }
    return size;
}

void px_spool_release(struct px_spool *spool, struct px_spool_file *file)
{
    if (!file)
        return;
    pthread_mutex_lock(&spool->lock);
    file->released = true;
    if (file->fd < 0 && file->pending.size == 0 && !file->writing)
        free_file(spool, file);
    pthread_mutex_unlock(&spool->lock);
}

void px_spool_add(struct px_spool *spool, struct px_spool_file *file, const char *text, size_t size)
{
    pthread_mutex_lock(&spool->lock);
    /* A file is the beginning of what was left out, without holes. */
    size = file->cut ? 0 : room(spool, file, size);
    if (size > 0) {
        const bool idle = file->pending.size < WORTH_WRITING;
        if (!file->pending.data) {
            file->pending = spool->spare;
            spool->spare = (struct px_buf){0};
        }
        px_buf_append(&file->pending, text, size);
        file->kept += size;
        spool->total += size;
        spool->pending += size;
        if ((idle && file->pending.size >= WORTH_WRITING) || spool->pending >= PENDING_FULL)
            pthread_cond_signal(&spool->work);
    }
    pthread_mutex_unlock(&spool->lock);
}

bool px_spool_full(struct px_spool *spool)
{
    return atomic_load_explicit(&spool->pending, memory_order_relaxed) >= PENDING_FULL;
}

void px_spool_wait(struct px_spool *spool)
{
    pthread_mutex_lock(&spool->lock);
    while (spool->pending >= PENDING_FULL)
        pthread_cond_wait(&spool->done, &spool->lock);
    pthread_mutex_unlock(&spool->lock);
}

static void hurry(struct px_spool *spool)
{
    spool->urgent = true;
    pthread_cond_signal(&spool->work);
}

void px_spool_settle(struct px_spool *spool, int64_t timeout_ms)
{
    const struct timespec until = px_wait_until(timeout_ms);
    pthread_mutex_lock(&spool->lock);
    hurry(spool);
    while (spool->pending > 0 &&
           pthread_cond_timedwait(&spool->done, &spool->lock, &until) != ETIMEDOUT)
        continue;
    px_buf_fini(&spool->spare); /* the flood is over */
    pthread_mutex_unlock(&spool->lock);
}

void px_spool_describe(struct px_spool *spool, const struct px_spool_file *file, struct px_buf *out)
{
    pthread_mutex_lock(&spool->lock);
    hurry(spool); /* whoever reads of it wants to read it */
    if (file->kept == 0)
        px_buf_printf(out, "it is lost: %s", file->why);
    else if (!file->path)
        px_buf_text(out, "it is being written");
    else if (file->cut)
        px_buf_printf(out, "its first %.1f MB are in %s: %s", (double)file->kept / 1e6, file->path,
                      file->why);
    else
        px_buf_printf(out, "it is in %s", file->path);
    pthread_mutex_unlock(&spool->lock);
}
