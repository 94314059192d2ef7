/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * install: how Jupyter learns of this kernel. Private to pxkernel.
 */
#ifndef PX_INSTALL_H
#define PX_INSTALL_H

/* `pxkernel install`: writes a kernelspec that starts this very program. Returns the exit status.
 */
int px_install_main(int argc, char **argv);

#endif
