/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Stands in for the kernel's own header; bcc's helpers.h wants the page size. */
#ifndef PAGE_SIZE
#define PAGE_SIZE 4096
#endif
