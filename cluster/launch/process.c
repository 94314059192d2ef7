/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One process of this host: start it, tell whether it is still the same, signal it.
 *
 * What may outlive whom: a process started here has this one as parent and asks the kernel for
 * SIGTERM when that parent dies (PR_SET_PDEATHSIG), so that `kill -9` of a supervisor ends
 * controller and engines too. It leads a session and a process group, so that a
 * terminal's Ctrl-C reaches only the supervisor, and so that its helpers can be ended with it.
 *
 * A process is known by pid and time of start (proc(5), stat, field 22): after a restart of a
 * container small pids return quickly, and a file on disk may name one.
 */
#define _GNU_SOURCE
#include "launch.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_COMMAND_LINE (1u << 20) /* more is no program that we start */

/* ---- looking ---- */

struct stat_line {
    char state;
    pid_t parent;
    char name[64];
    uint64_t started;
};

static bool read_stat(pid_t pid, struct stat_line *out)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%ld/stat", (long)pid);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    const ssize_t size = read(fd, text, sizeof text - 1);
    close(fd);
    if (size <= 0)
        return false;
    text[size] = 0;
    /* "pid (name) state ppid ...": the name may hold spaces and parentheses. */
    const char *open_paren = strchr(text, '('), *close_paren = strrchr(text, ')');
    if (!open_paren || !close_paren || close_paren < open_paren)
        return false;
    snprintf(out->name, sizeof out->name, "%.*s", (int)(close_paren - open_paren - 1),
             open_paren + 1);
    long parent;
    unsigned long long started;
    if (sscanf(close_paren + 1,
               " %c %ld %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu",
               &out->state, &parent, &started) != 3)
        return false;
    out->parent = (pid_t)parent;
    out->started = started;
    return true;
}

bool px_process_find(pid_t pid, struct px_process *out)
{
    struct stat_line line;
    if (pid <= 0 || !read_stat(pid, &line) || line.state == 'Z' || line.state == 'X')
        return false;
    *out = (struct px_process){pid, line.started};
    return true;
}

bool px_process_alive(struct px_process process)
{
    struct px_process now;
    return px_process_find(process.pid, &now) && now.started == process.started;
}

double px_process_start_time(struct px_process process)
{
    struct timespec boot, wall;
    clock_gettime(CLOCK_BOOTTIME, &boot);
    clock_gettime(CLOCK_REALTIME, &wall);
    const double up = (double)boot.tv_sec + (double)boot.tv_nsec / 1e9;
    const double now = (double)wall.tv_sec + (double)wall.tv_nsec / 1e9;
    return now - up + (double)process.started / (double)sysconf(_SC_CLK_TCK);
}

/* Of words that each end with NUL: "--option=VALUE", or "--option" and then VALUE. NULL: neither.
 */
static const char *value_of(const struct px_buf *words, const char *option)
{
    const size_t size = strlen(option);
    const char *end = words->data + words->size;
    for (const char *word = words->data; word < end; word += strlen(word) + 1) {
        if (strncmp(word, option, size) != 0)
            continue;
        if (word[size] == '=')
            return word + size + 1;
        if (!word[size] && word + size + 1 < end)
            return word + size + 1;
    }
    return NULL;
}

static bool is_of_cluster(pid_t pid, const json_t *state)
{
    char path[64];
    struct px_buf words = {0};
    snprintf(path, sizeof path, "/proc/%ld/cmdline", (long)pid);
    const char *dir = json_string_value(json_object_get(state, "profile_dir"));
    const char *id = json_string_value(json_object_get(state, "cluster_id"));
    bool is = false;
    if (dir && id && px_file_read(path, MAX_COMMAND_LINE, &words, NULL) == 0 && words.size) {
        const char *own_dir = value_of(&words, "--profile-dir");
        const char *own_id = value_of(&words, "--cluster-id");
        is = own_dir && own_id && strcmp(own_dir, dir) == 0 && strcmp(own_id, id) == 0;
    }
    px_buf_fini(&words);
    return is;
}

bool px_process_is_meant(struct px_process process, const json_t *state, double written)
{
    /* Clock ticks and a file's time are coarse, and the file is written after the start. */
    return px_process_start_time(process) <= written + 1.0 || is_of_cluster(process.pid, state);
}

bool px_process_is(struct px_process process, const char *name)
{
    struct stat_line line;
    return read_stat(process.pid, &line) && line.started == process.started &&
           strcmp(line.name, name) == 0;
}

bool px_process_ancestor(struct px_process process, const char *name, struct px_process *out)
{
    struct stat_line line;
    if (!read_stat(process.pid, &line) || line.started != process.started)
        return false;
    for (int level = 0; level < 3 && line.parent > 1; level++) {
        const pid_t pid = line.parent;
        if (!read_stat(pid, &line))
            return false;
        if (strcmp(line.name, name) == 0)
            return px_process_find(pid, out);
    }
    return false;
}

/* ---- signalling ---- */

void px_process_signal(struct px_process process, int signo)
{
    if (px_process_alive(process))
        kill(process.pid, signo);
}

void px_process_signal_group(struct px_process process, int signo)
{
    struct stat_line line;
    if (!read_stat(process.pid, &line) || line.started != process.started)
        return;
    if (getpgid(process.pid) == process.pid)
        kill(-process.pid, signo);
    else
        kill(process.pid, signo);
}

size_t px_process_signal_descendants(struct px_process process, const char *name, int signo)
{
    struct stat_line line;
    size_t count = 0;
    DIR *dir = px_process_alive(process) ? opendir("/proc") : NULL;
    if (!dir)
        return 0;
    for (struct dirent *entry; (entry = readdir(dir));) {
        const pid_t pid = (pid_t)atoi(entry->d_name); /* 0 for what is no process */
        if (pid <= 1 || !read_stat(pid, &line) || line.parent != process.pid)
            continue;
        const bool wanted = !name || strcmp(line.name, name) == 0;
        if (!name || !wanted)
            count +=
                px_process_signal_descendants((struct px_process){pid, line.started}, name, signo);
        if (wanted && kill(pid, signo) == 0)
            count++;
    }
    closedir(dir);
    return count;
}

/* ---- starting ---- */

static bool is_one_of(int fd, const int *fds, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (fds[i] == fd)
            return true;
    return false;
}

/* From 3 up, but `keep`: closes them, or lets no program run from here have them. */
static void each_descriptor(const int *keep, size_t keep_count, bool hide_only)
{
    DIR *dir = opendir("/proc/self/fd");
    if (!dir)
        return;
    const int own = dirfd(dir);
    for (struct dirent *entry; (entry = readdir(dir));) {
        const int fd = atoi(entry->d_name); /* "." and ".." give 0 */
        if (fd <= 2 || fd == own || is_one_of(fd, keep, keep_count))
            continue;
        if (hide_only)
            fcntl(fd, F_SETFD, FD_CLOEXEC);
        else
            close(fd);
    }
    closedir(dir);
}

void px_close_descriptors(const int *keep, size_t count)
{
    each_descriptor(keep, count, false);
}

static void reset_signals(void)
{
    for (int signo = 1; signo < NSIG; signo++)
        signal(signo, SIG_DFL); /* refused for SIGKILL and SIGSTOP, which is fine */
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* In the child. Writes errno to `failed` if the program cannot be run. */
PX_NORETURN static void become(const struct px_spawn *spawn, pid_t parent, int log, int failed)
{
    reset_signals();
    setsid();
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) /* died before the line above */
        _exit(1);
    const int in = spawn->in_fd ? spawn->in_fd : open("/dev/null", O_RDONLY);
    const int out = spawn->out_fd ? spawn->out_fd : log;
    for (char *const *item = spawn->env; item && *item; item++)
        putenv(*item);
    if (dup2(in, 0) >= 0 && dup2(out, 1) >= 0 && dup2(log, 2) >= 0) {
        each_descriptor(&spawn->keep_fd, 1, true); /* also those this process itself inherited */
        if (spawn->keep_fd >= 0)
            fcntl(spawn->keep_fd, F_SETFD, 0);
        execvp(spawn->argv[0], spawn->argv);
    }
    const int code = errno;
    if (write(failed, &code, sizeof code) < 0)
        _exit(126);
    _exit(127);
}

int px_process_spawn(const struct px_spawn *spawn, struct px_process *out, struct px_error *err)
{
    int result = -1, failed[2] = {-1, -1};
    const int log = open(spawn->log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (log < 0)
        return px_fail(err, PX_EIO, "cannot open %.200s: %s", spawn->log, strerror(errno));
    const pid_t parent = getpid();
    pid_t pid;
    if (pipe2(failed, O_CLOEXEC) < 0 || (pid = fork()) < 0) {
        px_fail(err, PX_EIO, "cannot start %.200s: %s", spawn->argv[0], strerror(errno));
        goto done;
    }
    if (pid == 0)
        become(spawn, parent, log, failed[1]);
    close(failed[1]);
    failed[1] = -1;
    int code;
    if (read(failed[0], &code, sizeof code) == (ssize_t)sizeof code) {
        waitpid(pid, NULL, 0);
        px_fail(err, code == ENOENT ? PX_ENOENT : PX_EIO, "cannot run %.200s: %s", spawn->argv[0],
                strerror(code));
        goto done;
    }
    struct stat_line line = {0};
    read_stat(pid, &line); /* ended or not: it is there until it is reaped */
    *out = (struct px_process){pid, line.started};
    result = 0;
done:
    close(log);
    if (failed[0] >= 0)
        close(failed[0]);
    if (failed[1] >= 0)
        close(failed[1]);
    return result;
}

char *px_program_path(const char *program)
{
    char self[PX_PATH_SIZE];
    const ssize_t size = readlink("/proc/self/exe", self, sizeof self - 1);
    if (size > 0) {
        self[size] = 0;
        *strrchr(self, '/') = 0;
        char *path = px_format("%s/%s", self, program);
        if (access(path, X_OK) == 0)
            return path;
        free(path);
    }
    return px_strdup(program);
}
