"""A client in a process of its own: asks one socket for a while and says how long answers took.

`load.py SOCKET REQUEST CLIENTS SECONDS`, REQUEST a file with a PredictRequest. One client asks and
waits, again and again, through grpc's blocking stub; several are tasks of one event loop on one
connection. Requests are sent and answers taken as bytes: a client costs as little as it can. The
first calls, a fifth of the time, are not timed. On stdout comes one JSON object: `p50` and `p99` in
microseconds, `rate` in calls per second, the number of all `calls`, and the `answer` to the first
one in base 64.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import uvloop

_PREDICT = "/envd.v1.Predictions/Predict"
_WARM_UP = 0.2
_LIMIT = 256 << 20
_OPTIONS = [
    ("grpc.max_send_message_length", _LIMIT),
    ("grpc.max_receive_message_length", _LIMIT),
]


class Clock:
    """Times the calls between the end of the warm-up and the end of the run."""

    def __init__(self, seconds: float) -> None:
        """Start the warm-up of a run of *seconds*."""
        self.begun = time.perf_counter() + _WARM_UP * seconds
        self.end = self.begun + seconds
        self._seconds = seconds
        self._taken: list[float] = []
        self._calls = 1

    def count(self, started: float, ended: float) -> None:
        """Take note of one call."""
        self._calls += 1
        if started >= self.begun and ended <= self.end:
            self._taken.append(ended - started)

    def document(self, answer: bytes) -> dict[str, object]:
        """Return what came out."""
        taken = sorted(self._taken)
        return {
            "p50": 1e6 * taken[len(taken) // 2],
            "p99": 1e6 * taken[len(taken) * 99 // 100],
            "rate": len(taken) / self._seconds,
            "calls": self._calls,
            "answer": base64.b64encode(answer).decode(),
        }


def _one(target: str, request: bytes, seconds: float) -> dict[str, object]:
    with grpc.insecure_channel(target, _OPTIONS) as channel:
        predict = _stub(channel)
        answer = predict(request)
        clock = Clock(seconds)
        while (started := time.perf_counter()) < clock.end:
            predict(request)
            clock.count(started, time.perf_counter())
    return clock.document(answer)


async def _many(target: str, request: bytes, clients: int, seconds: float) -> dict[str, object]:
    async with grpc.aio.insecure_channel(target, _OPTIONS) as channel:
        predict = _stub(channel)
        answer = await predict(request)
        clock = Clock(seconds)

        async def client() -> None:
            while (started := time.perf_counter()) < clock.end:
                await predict(request)
                clock.count(started, time.perf_counter())

        await asyncio.gather(*(client() for _ in range(clients)))
    return clock.document(answer)


def _stub(channel: Any) -> Callable[[bytes], Any]:
    # Without serializers, bytes go through as they are.
    stub: Callable[[bytes], Any] = channel.unary_unary(_PREDICT)
    return stub


def main() -> None:
    """Run."""
    socket, file, clients, seconds = sys.argv[1:]
    target, request = f"unix:{socket}", Path(file).read_bytes()
    if int(clients) == 1:
        found = _one(target, request, float(seconds))
    else:
        found = uvloop.run(_many(target, request, int(clients), float(seconds)))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
