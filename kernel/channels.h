/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * channels: a kernel's five sockets. Private to pxkernel.
 */
#ifndef PX_CHANNELS_H
#define PX_CHANNELS_H

#include "service.h"

struct px_channels;

/*
 * Binds the sockets that the connection file `path` names, chooses ports where it says 0 and then
 * writes them into the file, tells them to the launcher where it is a registration file, and
 * starts the service thread: from now on kernel_info is answered. `debugger`: debug_requests go to
 * the language. Ends when px_channels_close() is called, or by itself as px_service_end() says.
 */
struct px_channels *px_channels_open(const char *path, const struct px_interp_ops *ops,
                                     const struct px_output_config *output, bool debugger,
                                     struct px_error *err);
struct px_kernel *px_channels_kernel(struct px_channels *channels);
struct px_service *px_channels_service(struct px_channels *channels);
/* Main thread, when the language has ended: sends what is left and frees everything. */
void px_channels_close(struct px_channels *channels);

#endif
