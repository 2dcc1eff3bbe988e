"""Clients in a process of their own: ask several servers, a slice of time each, in turn.

On stdin comes a JSON object: `clients`, `seconds` for each server, and `servers`, by name: the
`target` (an address as gRPC writes it), the gRPC `method`, a file with the `request`, the `pid`.
Without a method it is an HTTP server: the file holds the whole request. One client asks and
waits, again and again, and blocks; several are tasks of one event loop, on one connection with gRPC
and on one each with HTTP. Requests are sent and answers taken as bytes: a client costs as
little as it can.

Each slice has a fifth that is not counted. On stdout comes for each server: `p50` and `p99` in
microseconds from request to answer, `wall` in microseconds per answer, and `cpu`, the processor
time of the server's process per answer.
"""

from __future__ import annotations

import asyncio
import functools
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import uvloop

_SLICE_S, _WARM_UP = 0.5, 0.2
_LIMIT = 256 << 20
_OPTIONS = [
    ("grpc.max_send_message_length", _LIMIT),
    ("grpc.max_receive_message_length", _LIMIT),
]


@dataclass(slots=True)
class Server:
    """A server, and what came out so far."""

    target: str
    method: str
    request: bytes
    pid: int
    taken: list[float] = field(default_factory=list)
    counted_s: float = 0.0
    calls: int = 0
    cpu_s: float = 0.0
    begin: float = 0.0
    end: float = 0.0

    def start(self) -> None:
        """Begin a slice."""
        now = time.perf_counter()
        self.begin, self.end = now + _WARM_UP * _SLICE_S, now + _SLICE_S
        self.counted_s += self.end - self.begin
        self.cpu_s -= _cpu_seconds(self.pid)

    def stop(self) -> None:
        """End it."""
        self.cpu_s += _cpu_seconds(self.pid)

    def count(self, asked: float) -> None:
        """Take note of an answer."""
        now = time.perf_counter()
        self.calls += 1
        if self.begin <= now < self.end:
            self.taken.append(now - asked)

    def figures(self) -> dict[str, float]:
        """Return what came out."""
        taken = sorted(self.taken)
        return {
            "p50": 1e6 * taken[len(taken) // 2],
            "p99": 1e6 * taken[len(taken) * 99 // 100],
            "wall": 1e6 * self.counted_s / len(taken),
            "cpu": 1e6 * self.cpu_s / self.calls,
        }


def _cpu_seconds(pid: int) -> float:
    """Return the processor time that the threads of *pid* have had."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return 1e-9 * sum(int(task.read_text().split()[0]) for task in tasks)


def _one(server: Server) -> Callable[[], None]:
    called: Any = None
    if server.method:
        called = grpc.insecure_channel(server.target, _OPTIONS).unary_unary(server.method)

    def ask() -> None:
        answer = called or _blocking_http(server)
        server.start()
        while (asked := time.perf_counter()) < server.end:
            answer(server.request)
            server.count(asked)
        server.stop()

    return ask


def _many(server: Server, clients: int) -> Callable[[], Awaitable[None]]:
    called: Any = None
    if server.method:
        called = grpc.aio.insecure_channel(server.target, _OPTIONS).unary_unary(server.method)

    async def client(answer: Any) -> None:
        while (asked := time.perf_counter()) < server.end:
            await answer(server.request)
            server.count(asked)

    async def ask() -> None:
        # A connection that was idle for so long as others are asked may have been closed.
        answers = [called or _http(server) for _ in range(clients)]
        server.start()
        await asyncio.gather(*map(client, answers))
        server.stop()

    return ask


def _blocking_http(server: Server) -> Callable[[bytes], None]:
    """Return what sends a request over a connection of its own, and takes the answer."""

    @functools.cache
    def connection() -> Any:
        return socket.create_connection(_address(server)).makefile("rwb")

    def answer(request: bytes) -> None:
        connection().write(request)
        connection().flush()
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (line := connection().readline()):
                raise ConnectionResetError
            head += line
        connection().read(_length(head))

    return answer


def _http(server: Server) -> Callable[[bytes], Awaitable[None]]:
    """Return the same for a task."""
    streams: list[Any] = []

    async def answer(request: bytes) -> None:
        if not streams:
            streams.extend(await asyncio.open_connection(*_address(server)))
        reader, writer = streams
        writer.write(request)
        await reader.readexactly(_length(await reader.readuntil(b"\r\n\r\n")))

    return answer


def _address(server: Server) -> tuple[str, int]:
    host, _, port = server.target.rpartition(":")
    return host, int(port)


def _length(head: bytes) -> int:
    """Return how long the body is behind the *head* of an answer that went well.

    Raises:
        ValueError: it did not go well.
    """
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise ValueError(head.decode())
    return int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])


async def _all(servers: Iterable[Server], clients: int, turns: int) -> None:
    asking = [_many(server, clients) for server in servers]
    for number in range(turns):
        for ask in asking if number % 2 == 0 else reversed(asking):
            await ask()


def _alone(servers: Iterable[Server], turns: int) -> None:
    asking = [_one(server) for server in servers]
    for number in range(turns):
        for ask in asking if number % 2 == 0 else reversed(asking):
            ask()


def main() -> None:
    """Run."""
    given = json.load(sys.stdin)
    servers = {
        name: Server(one["target"], one["method"], Path(one["request"]).read_bytes(), one["pid"])
        for name, one in given["servers"].items()
    }
    turns = round(given["seconds"] / _SLICE_S)
    if given["clients"] == 1:
        _alone(servers.values(), turns)
    else:
        uvloop.run(_all(servers.values(), given["clients"], turns))
    print(json.dumps({name: one.figures() for name, one in servers.items()}))


if __name__ == "__main__":
    main()
