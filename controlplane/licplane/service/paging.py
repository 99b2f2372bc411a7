# SPDX-License-Identifier: Apache-2.0
"""Pages of lists: tokens are the last key of a page, in base64url, and nothing else."""

from __future__ import annotations

import json
from typing import Final

from licplane.errors import ExitCode, PlaneError
from licplane.service.requests import PageRequest
from lictoken import base64url
from lictoken.errors import TokenError

DEFAULT_SIZE: Final = 100
MAX_SIZE: Final = 1_000
_TOKEN_MAX: Final = 4_096


def size_of(page: PageRequest) -> int:
    """How many items the caller gets at most."""
    return min(page.size or DEFAULT_SIZE, MAX_SIZE) if page.size >= 0 else DEFAULT_SIZE


def token_of(*key: str) -> str:
    """The token of the page after this key."""
    return base64url.encode(json.dumps(key, ensure_ascii=False).encode())


def key_of(page: PageRequest, parts: int) -> tuple[str, ...] | None:
    """The key that a token holds, None for the first page. Raises PlaneError USAGE."""
    if not page.token:
        return None
    try:
        if len(page.token) > _TOKEN_MAX:
            raise ValueError("too long")
        found = json.loads(base64url.decode(page.token, "page_token"))
        if not isinstance(found, list) or len(found) != parts:
            raise ValueError("not ours")
        key = tuple(str(one) for one in found)
        for one in key:
            one.encode()
            if "\0" in one:
                raise ValueError("not ours")
    except (ValueError, RecursionError, TokenError) as error:
        raise PlaneError(
            ExitCode.USAGE, "The page token is none of ours", "Begin with an empty one"
        ) from error
    return key
