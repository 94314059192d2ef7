/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * --daemonize: the work goes on in a child; the command returns when that says how it went.
 *
 * The two share a socket pair. What the child writes goes to the parent's stderr; a byte 0
 * and a status byte end it, and the parent exits with that status. A child that dies
 * closes the socket without them, which is a failure. A parent that is killed or interrupted
 * closes its end, which the child takes as a wish to stop: nothing is started for nobody.
 */
#define _GNU_SOURCE
#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const int interrupts[] = {SIGINT, SIGTERM, SIGHUP};

static void on_interrupt(int signo)
{
    (void)signo; /* ppoll() returns EINTR; that is all */
}

/* What asks this process to end waits until the parent's ppoll() takes it: none is lost before. */
static sigset_t hold_interrupts(void)
{
    sigset_t held, before;
    sigemptyset(&held);
    for (size_t i = 0; i < PX_COUNT(interrupts); i++)
        sigaddset(&held, interrupts[i]);
    sigprocmask(SIG_BLOCK, &held, &before);
    return before;
}

/* In the parent. After an interrupt it stays until the child has cleaned up. */
PX_NORETURN static void pass_on(int channel, sigset_t waiting)
{
    const struct sigaction action = {.sa_handler = on_interrupt}; /* no SA_RESTART */
    char bytes[4096];
    bool ended = false;
    for (size_t i = 0; i < PX_COUNT(interrupts); i++) {
        sigaction(interrupts[i], &action, NULL);
        sigdelset(&waiting, interrupts[i]);
    }
    for (;;) {
        struct pollfd readable = {.fd = channel, .events = POLLIN};
        if (ppoll(&readable, 1, NULL, &waiting) < 0 && errno == EINTR) {
            shutdown(channel, SHUT_WR); /* the child reads the end of file */
            continue;
        }
        const ssize_t size = read(channel, bytes, sizeof bytes);
        if (size <= 0)
            break;
        for (ssize_t i = 0; i < size; i++) {
            if (ended)
                exit((unsigned char)bytes[i]);
            if (bytes[i] == 0)
                ended = true;
            else
                (void)px_fd_write(STDERR_FILENO, (struct px_span){&bytes[i], 1});
        }
    }
    px_die(1, "the background process ended before the cluster was ready");
}

static int become_daemon(const char *log, struct px_error *err)
{
    setsid();
    signal(SIGPIPE, SIG_IGN);
    const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    const int out = open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (null < 0 || out < 0)
        return px_fail(err, PX_EIO, "cannot open %s: %s", log, strerror(errno));
    dup2(null, 0);
    dup2(null, 1);
    dup2(out, 2);
    return 0;
}

int px_background(const char *log, int keep_fd, int *channel, struct px_error *err)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        return px_fail(err, PX_EIO, "cannot make a socket pair: %s", strerror(errno));
    fflush(NULL);
    const sigset_t before = hold_interrupts();
    const pid_t child = fork();
    if (child != 0)
        close(ends[1]);
    if (child > 0)
        pass_on(ends[0], before);
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (child < 0) {
        close(ends[0]);
        return px_fail(err, PX_EIO, "cannot fork: %s", strerror(errno));
    }
    *channel = ends[1];
    const int keep[] = {ends[1], keep_fd};
    /* The others are the caller's: pipes that somebody may read to the end. */
    px_close_descriptors(keep, PX_COUNT(keep));
    return become_daemon(log, err);
}

void px_background_say(int channel, const char *text)
{
    (void)px_fd_write(channel, px_span_of(text));
}

void px_background_done(int channel, int status)
{
    const char end[2] = {0, (char)status};
    (void)px_fd_write(channel, (struct px_span){end, sizeof end});
    close(channel);
}
