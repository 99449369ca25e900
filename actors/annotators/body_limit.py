"""Breaks off replies that are longer than anybody needs, before they are read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import httpx2

from onibi.actors.annotators.call_fault import CallFault
from onibi.actors.annotators.call_statistics import CallFailure


def body_limit(most_bytes: int, url: str) -> Callable[[httpx2.Response], Awaitable[None]]:
    """A response hook of an async client: no body, of error replies neither, gets longer than ``most_bytes``.

    Args:
        most_bytes: of one body as it comes over the wire; compressed ones are refused, as they unfold to any length.
        url: of the server, for messages.
    """

    async def limit_body(response: httpx2.Response) -> None:
        coding = response.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            raise CallFault(CallFailure.MALFORMED, f"model server {url}: its reply is {coding}-compressed, unasked")
        assert isinstance(response.stream, httpx2.AsyncByteStream)  # of an async client
        response.stream = _LimitedStream(response.stream, most_bytes, url)

    return limit_body


class _LimitedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, most_bytes: int, url: str) -> None:
        self._stream, self._most_bytes, self._url = stream, most_bytes, url

    async def __aiter__(self) -> AsyncIterator[bytes]:
        length = 0
        async for chunk in self._stream:
            length += len(chunk)
            if length > self._most_bytes:
                raise CallFault(
                    CallFailure.TOO_LONG,
                    f"model server {self._url}: a reply of over {self._most_bytes} bytes was broken off (reply_bytes)",
                )
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
