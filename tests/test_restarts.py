"""A daemon that is stopped and started again under load: who asks again loses nothing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from envd_client import AsyncClient, EnvdError

from tests.conftest import Daemon, launch, one_python, stop, wait_for
from tests.tiny import Tiny

CLIENTS, OUTSTANDING = 8, 32
# Every tenth is under way for a while, as something always is when a daemon is stopped.
BODY = """
        import os, time
        time.sleep(0.03 * (data[0] % 10 == 0))
        return [os.getpid(), data[0]]
"""
ASLEEP = "        import time; open(data[0], 'w').close(); time.sleep(data[1]); return 'awake'"


@dataclass
class Load:
    """Clients that ask again when they are told to, and what came of that."""

    model: Path
    answers: Counter[int] = field(default_factory=Counter)
    wrong: list[object] = field(default_factory=list)

    async def ask(self, socket: Path, rate: float, over: asyncio.Event) -> None:
        """Ask *rate* times a second, while not too many have no answer yet."""
        room = asyncio.Semaphore(OUTSTANDING)
        async with (
            AsyncClient(socket, retries=1000, timeout_s=60) as client,
            asyncio.TaskGroup() as tasks,
        ):
            due, number = time.monotonic(), 0
            while not over.is_set():
                await room.acquire()
                tasks.create_task(self._one(client, number)).add_done_callback(
                    lambda _: room.release()
                )
                number += 1
                due = max(due + 1 / rate, time.monotonic() - 1)
                await asyncio.sleep(due - time.monotonic())

    async def _one(self, client: AsyncClient, number: int) -> None:
        try:
            answer = await client.predict(self.model, [number])
        except EnvdError as error:
            self.wrong.append((error.code, error.reason, error.message))
            return
        pid, given = answer.predictions
        self.answers[pid] += 1
        if given != number:
            self.wrong.append((given, number))


@pytest.mark.parametrize(
    ("restarts", "rate", "up_s"),
    [(3, 100, 0.3), pytest.param(20, 500, 2, marks=pytest.mark.slow)],
)
def test_restarts_cost_a_client_that_asks_again_nothing(
    tiny: Tiny, tools: Path, tmp_path: Path, home: Path, restarts: int, rate: int, up_s: float
) -> None:
    root, settings = tmp_path / "root", tiny.settings | one_python(tools)
    load = Load(tiny.model(tmp_path / "model", body=BODY))
    daemons = [launch(root, home, **settings)]

    async def play() -> None:
        over = asyncio.Event()
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(load.ask(root / "predict.sock", rate / CLIENTS, over))
            for number in range(restarts):
                await _until(lambda: len(load.answers) > number)  # noqa: B023
                await asyncio.sleep(up_s)
                daemons[-1].process.terminate()
                await asyncio.to_thread(daemons[-1].process.communicate, timeout=60)
                daemons.append(await asyncio.to_thread(launch, root, home, **settings))
            await _until(lambda: len(load.answers) > restarts)
            over.set()

    began = time.monotonic()
    try:
        asyncio.run(play())
    finally:
        stop(daemons[-1])
    seconds = time.monotonic() - began

    print(
        f"{load.answers.total()} answers in {seconds:.1f} s: {load.answers.total() / seconds:.0f}/s"
    )
    assert load.wrong == []
    assert [one.process.returncode for one in daemons] == [0] * (restarts + 1)
    # A worker of each daemon has answered.
    assert len(load.answers) == restarts + 1


async def _until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not happened():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_who_is_not_done_when_the_time_is_over_is_told_to_ask_the_next_daemon(
    start_daemon: Callable[..., Daemon], tiny: Tiny, tmp_path: Path
) -> None:
    settings = {"ENVD_DAEMON__DRAIN": "1s", "ENVD_WORKERS__STOP_GRACE": "100ms"}
    daemon = start_daemon(tmp_path / "root", **tiny.settings | settings)
    model = tiny.model(tmp_path / "model", body=ASLEEP)
    outcomes: dict[str, object] = {}

    def ask(name: str, sleep_s: float) -> None:
        with daemon.client() as client:
            try:
                outcomes[name] = client.predict(model, [str(tmp_path / name), sleep_s]).predictions
            except EnvdError as error:
                outcomes[name] = error

    threads = [threading.Thread(target=ask, args=one) for one in [("short", 0.3), ("long", 600)]]
    for one in threads:
        one.start()
        wait_for((tmp_path / "short").exists)
    wait_for((tmp_path / "long").exists)
    daemon.process.terminate()
    late = threading.Thread(target=ask, args=("late", 0))
    late.start()
    for one in (*threads, late):
        one.join()

    assert daemon.process.wait(20) == 0
    assert outcomes.pop("short") == "awake"
    assert {(one.code.name, one.reason) for one in outcomes.values()} <= {
        ("UNAVAILABLE", "SHUTTING_DOWN"),
        ("UNAVAILABLE", "DAEMON_UNREACHABLE"),
    }
