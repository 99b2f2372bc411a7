# SPDX-License-Identifier: Apache-2.0
"""A filesystem that answers nothing, as a file server's that is gone."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

_MNT_DETACH: Final = 2


@contextlib.contextmanager
def hanging_filesystem(folder: Path) -> Iterator[None]:
    """FUSE that nobody serves, mounted over `folder`; whoever looks inside waits for its end."""
    libc = ctypes.CDLL(None, use_errno=True)
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    try:
        if libc.mount(b"x", bytes(folder), b"fuse.x", 0, options):
            pytest.skip("FUSE cannot be mounted here")
        try:
            yield
        finally:
            libc.umount2(bytes(folder), _MNT_DETACH)
    finally:
        os.close(fuse)  # ends whatever waits for it, with ENOTCONN
