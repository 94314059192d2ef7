/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * tunnel: reaching the controller through ssh (ipengine's --ssh and --sshkey, and "ssh" in the
 * connection file). One serves all engines of a fork server, whose process owns it: every call is
 * from that process, but for px_tunnel_forget().
 */
#ifndef PX_ENGINE_TUNNEL_H
#define PX_ENGINE_TUNNEL_H

#include "base/base.h"
#include "wire/wire.h"

#include <sys/types.h>

struct px_tunnel;

/*
 * Runs the system's ssh, waits until it has connected, and points `connection` at the near end,
 * which only this user can reach. server: "user@host:port", or NULL for the controller's own host;
 * key: a private key's file, or NULL for what ssh finds itself. NULL with ssh's own words. Close it
 * when no engine needs it any more.
 */
struct px_tunnel *px_tunnel_open(const char *server, const char *key,
                                 struct px_cluster_connection *connection, struct px_error *err);
/* In a process forked from the owner: lets go of what would keep ssh running without it. */
void px_tunnel_forget(struct px_tunnel *tunnel);
/* Whether the child that has been reaped is this tunnel's ssh; then says why it ended. NULL: no. */
bool px_tunnel_ended(struct px_tunnel *tunnel, pid_t pid);
/* Starts ssh again, at the same places; does not wait for it. */
PX_MUST_USE int px_tunnel_again(struct px_tunnel *tunnel, struct px_error *err);
/* Ends ssh and frees. NULL is let pass. */
void px_tunnel_close(struct px_tunnel *tunnel);

#endif
