"""Clients in a process of their own: ask several servers, a slice of time each, in turn.

On stdin comes a JSON object: `clients`, `seconds` for each server, and `servers`, by name: the
`socket`, a file with a PredictRequest, and the `pid`. One client asks and waits, again and again,
through grpc's blocking stub; several are tasks of one event loop on one connection. Requests are
sent and answers taken as bytes: a client costs as little as it can.

Each slice has a fifth that is not counted. On stdout comes for each server: `p50` and `p99` in
microseconds from request to answer, `wall` in microseconds per answer, and `cpu`, the processor
time of the server's process per answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import uvloop

_PREDICT = "/envd.v1.Predictions/Predict"
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
    channel = grpc.insecure_channel(server.target, _OPTIONS)
    predict: Any = channel.unary_unary(_PREDICT)

    def ask() -> None:
        server.start()
        while (asked := time.perf_counter()) < server.end:
            predict(server.request)
            server.count(asked)
        server.stop()

    return ask


def _many(server: Server, clients: int) -> Callable[[], Awaitable[None]]:
    channel = grpc.aio.insecure_channel(server.target, _OPTIONS)
    predict: Any = channel.unary_unary(_PREDICT)

    async def client() -> None:
        while (asked := time.perf_counter()) < server.end:
            await predict(server.request)
            server.count(asked)

    async def ask() -> None:
        server.start()
        await asyncio.gather(*(client() for _ in range(clients)))
        server.stop()

    return ask


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
        name: Server(f"unix:{one['socket']}", Path(one["request"]).read_bytes(), one["pid"])
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
