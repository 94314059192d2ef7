/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * cut: ends TCP connections, as a network does that has gone away, but lets both ends know.
 *
 * A connection over a network that is away looks as if it stood. TCP repeats what was not
 * acknowledged ever more rarely, and finds a network that is back as late again as it was away.
 * Once such a connection is cut, libzmq sees an error and connects anew, again and again
 * (CONNECT_MS in socket.c); it keeps what it has not written yet, and knows who the peer is.
 *
 * Only the socket of the system will do. zmq_disconnect(3) closes it, whereupon the system goes on
 * to deliver what was written; and where a ROUTER has given the name to another connection in the
 * meantime, libzmq 4.3.4 can then end the peer's process (stream_engine_base.cpp, assertion
 * !_io_error).
 */
#define _GNU_SOURCE
#include "private.h"

#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* 0: it is no TCP connection that stands. */
static int peer_port(int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
        struct sockaddr_storage room;
    } peer;
    socklen_t size = sizeof peer;
    if (getpeername(fd, &peer.any, &size) < 0)
        return 0;
    return peer.any.sa_family == AF_INET    ? ntohs(peer.in.sin_port)
           : peer.any.sa_family == AF_INET6 ? ntohs(peer.in6.sin6_port)
                                            : 0;
}

/* Of px_socket_create(), and not of something else in this process. */
static bool is_ours(int fd)
{
    int interval_s = 0, probes = 0;
    socklen_t size = sizeof interval_s;
    return getsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, &size) == 0 &&
           getsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, &size) == 0 &&
           interval_s == PX_KEEPALIVE_INTERVAL_S && probes == PX_KEEPALIVE_PROBES;
}

static bool leads_to(int fd, const int ports[], size_t count)
{
    const int port = peer_port(fd);
    for (size_t i = 0; port > 0 && i < count; i++)
        if (port == ports[i])
            return is_ours(fd);
    return false;
}

static bool cut(int fd)
{
    const struct sockaddr nobody = {.sa_family = AF_UNSPEC}; /* connect(2): dissolves it */
    return connect(fd, &nobody, sizeof nobody) == 0;
}

size_t px_connections_cut(const int ports[], size_t count)
{
    size_t done = 0;
    DIR *dir = opendir("/proc/self/fd");
    if (!dir)
        return 0;
    for (const struct dirent *entry; (entry = readdir(dir));) {
        const int fd = atoi(entry->d_name);
        if (fd <= STDERR_FILENO || !leads_to(fd, ports, count))
            continue;
        const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0); /* libzmq may close its own at any time */
        if (copy < 0)
            continue;
        done += leads_to(copy, ports, count) && cut(copy);
        close(copy);
    }
    closedir(dir);
    return done;
}
