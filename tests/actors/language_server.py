"""A server that speaks OpenAI's protocol over real sockets, and does to its clients whatever a test tells it to."""

from __future__ import annotations

import http.server
import json
import math
import re
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

QUOTED = r'"(?:[^"\\]|\\.)*"'


def judge(caption: str) -> str:
    """The server's verdict; what is right can be told from the caption alone."""
    return "helpful" if "door" in caption else "unhelpful"


def captions_of(body: dict[str, Any]) -> list[str]:
    """What the prompt asks about, read from its quoted lines alone: one per numbered line, or the single one."""
    user = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    numbered = re.findall(rf"^(\d+)\. ({QUOTED})", user, re.MULTILINE)
    if numbered:
        assert [int(number) for number, _ in numbered] == list(range(1, len(numbered) + 1)), user
        return [json.loads(text) for _, text in numbered]
    (only,) = re.findall(rf"^Caption: ({QUOTED})", user, re.MULTILINE)
    return [json.loads(only)]


def pairs_of(body: dict[str, Any]) -> list[tuple[str, str]]:
    user = body["messages"][-1]["content"]
    beside = rf"(?: \(said together with it: {QUOTED}\))?"
    found = re.findall(rf"^(?:\d+\.|Pair:) first: ({QUOTED}){beside} second: ({QUOTED})", user, re.MULTILINE)
    return [(json.loads(first), json.loads(second)) for first, second in found]


def completion(text: str | None, *, finish: str | None = "stop", logprobs: Any = None, usage: Any = None) -> bytes:
    """A body as such servers send it, for both APIs at once."""
    counts = {"prompt_tokens": 100, "completion_tokens": 10} if usage is None else usage
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "text": text}
    return json.dumps(
        {"id": "c", "choices": [{**choice, "finish_reason": finish, "logprobs": logprobs}], "usage": counts}
    ).encode()


def top_tokens(**probabilities: float) -> dict[str, Any]:
    top = [{"token": word, "logprob": math.log(p)} for word, p in probabilities.items()]
    return {"content": [{"token": top[0]["token"], "logprob": top[0]["logprob"], "top_logprobs": top}]}


def drop(call: Call) -> None:
    """Resets the connection."""
    call.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    call.handler.close_connection = True
    call.handler.connection.close()


def polite(call: Call) -> None:
    """Judges rightly, in the form that it is asked for."""
    body = call.body
    if pairs := (pairs_of(body) if "messages" in body else []):
        words = [("first" if judge(first) == "helpful" else "second") for first, second in pairs]
        words = [
            "tie" if judge(first) == judge(second) else word for word, (first, second) in zip(words, pairs, strict=True)
        ]
        if "logprobs" in body:
            return call.reply(completion(words[0], logprobs=top_tokens(**{words[0]: 0.8, "banana": 0.1})))
    else:
        words = [judge(caption) for caption in captions_of(body)]
        if "logprobs" in body:
            yes = 0.9 if words[0] == "helpful" else 0.15
            return call.reply(completion("yes", logprobs=top_tokens(Yes=yes, no=0.95 - yes, banana=0.05)))
    if "response_format" in body:
        return call.reply(completion(json.dumps({str(n): word for n, word in enumerate(words, start=1)})))
    return call.reply(completion("\n".join(f"{n}: {word}" for n, word in enumerate(words, start=1))))


class Call:
    """One request as the server sees it, and ways to answer."""

    def __init__(self, handler: http.server.BaseHTTPRequestHandler, body: dict[str, Any], number: int) -> None:
        self.handler, self.body, self.number = handler, body, number
        self.headers = {name.lower(): value for name, value in handler.headers.items()}
        self.path = handler.path

    def reply(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.handler.send_response(status)
        self.handler.send_header("Content-Type", "application/json")
        self.handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.end_headers()
        self.handler.wfile.write(body)

    def chunks(self, first: bytes, chunk: bytes, wait: Callable[[], bool], **headers: str) -> None:
        """An endless chunked body: ``wait`` before each chunk; True ends it."""
        self.handler.send_response(200)
        self.handler.send_header("Content-Type", "application/json")
        self.handler.send_header("Transfer-Encoding", "chunked")
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.end_headers()
        part = first
        while True:
            self.handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.handler.wfile.flush()
            if wait():
                return
            part = chunk


class LanguageServer(http.server.ThreadingHTTPServer):
    """``behave`` answers every request; ``calls`` are those that came."""

    daemon_threads = True
    block_on_close = False
    judge = staticmethod(judge)
    captions_of = staticmethod(captions_of)
    completion = staticmethod(completion)
    top_tokens = staticmethod(top_tokens)
    polite = staticmethod(polite)
    drop = staticmethod(drop)

    def __init__(self) -> None:
        self.behave: Callable[[Call], None] = polite
        self.calls: list[Call] = []
        self.faults: list[str] = []
        self.ending = threading.Event()
        self.lock = threading.Lock()
        self.in_flight = self.most_in_flight = 0
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner.lock:
                    call = Call(self, body, len(owner.calls))
                    owner.calls.append(call)
                    owner.in_flight += 1
                    owner.most_in_flight = max(owner.most_in_flight, owner.in_flight)
                try:
                    owner.behave(call)
                except OSError:
                    self.close_connection = True  # the client had enough
                except Exception as error:
                    owner.faults.append(repr(error))  # of the test, not of the client
                    raise
                finally:
                    with owner.lock:
                        owner.in_flight -= 1

            def log_message(self, *_: object) -> None:
                """Quiet."""

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that a test broke is no news."""

    def close(self) -> None:
        self.ending.set()
        self.shutdown()
        self.server_close()
