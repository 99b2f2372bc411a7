/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Stands in for the kernel's own header, so that bcc needs no kernel headers on the host: the
 * programs here use stable UAPI types only. */
#define CONFIG_BPF_SYSCALL 1
