# SPDX-License-Identifier: Apache-2.0
"""Metrics and health of a worker over plain HTTP: GET /metrics, /-/healthy, /-/ready.

Bounded in connections, in bytes and in time. It changes nothing and takes no input but the path
and the Accept header.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

_REQUEST_MAX_BYTES: Final = 8192
_REQUEST_TIMEOUT_S: Final = 10.0
"""Prometheus' own default for a scrape."""
_CONNECTIONS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: str = "200 OK"

    @classmethod
    def words(cls, text: str, *, ok: bool = True) -> Page:
        """Plain words: 200 or 503, as probes read it."""
        return cls(f"{text}\n".encode(), status="200 OK" if ok else "503 Service Unavailable")


Handler = Callable[[str], Awaitable[Page]]
"""Makes a page; its argument is the Accept header."""


async def serve_pages(pages: Mapping[str, Handler], host: str, port: int) -> asyncio.Server:
    """Answer for the pages at an address. Raises OSError when it cannot be had."""
    waiting: dict[asyncio.StreamWriter, None] = {}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(waiting) >= _CONNECTIONS_MAX:
            # The oldest goes, not the newest: who says nothing must not keep a scraper out.
            oldest = next(iter(waiting))
            del waiting[oldest]
            oldest.transport.abort()
        waiting[writer] = None
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await _response(head, pages))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a scraper that went away or talks something else gets nothing
        finally:
            # Not close(): that waits for ever for a client that does not read what is due to it.
            writer.transport.abort()
            waiting.pop(writer, None)

    return await asyncio.start_server(answer, host, port, limit=_REQUEST_MAX_BYTES)


async def _response(head: bytes, pages: Mapping[str, Handler]) -> bytes:
    request, *lines = head.decode("latin-1").split("\r\n")
    words = request.split(" ")
    if words[0] not in {"GET", "HEAD"}:
        return _bytes(Page(b"Use GET.\n", status="405 Method Not Allowed"))
    handler = pages.get(words[1].partition("?")[0]) if len(words) == 3 else None
    if handler is None:
        return _bytes(Page(f"There is {', '.join(pages)}.\n".encode(), status="404 Not Found"))
    accept = ",".join(
        value.strip()
        for name, _, value in (line.partition(":") for line in lines)
        if name.lower() == "accept"
    )
    return _bytes(await handler(accept), with_body=words[0] == "GET")


def _bytes(page: Page, *, with_body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {page.status}\r\nContent-Type: {page.content_type}\r\n"
        f"Content-Length: {len(page.body)}\r\nCache-Control: no-store\r\n"
        "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (page.body if with_body else b"")
