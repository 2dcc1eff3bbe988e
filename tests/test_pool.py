"""Which workers are stopped: those that nobody asks, and nobody waits for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from envd.model import Model, mlmodel
from envd.run.pool import Pool, Request
from envd.run.processes import Processes
from envd.run.serving import Serving
from envd.settings.sections import Workers
from envd.settings.values import Seconds
from envd.store import Environment, Store
from tests.house import House
from tests.stage import Stage, answer, request, until
from tests.tiny import ECHO, Tiny

REQUEST = Request(b'{"inputs": [1]}', "application/json", None)


@pytest.fixture
def processes() -> Iterator[Processes]:
    found = Processes.create()
    yield found
    found.close()


def test_a_worker_somebody_waits_for_is_not_stopped(
    house: House, tiny: Tiny, processes: Processes
) -> None:
    model = mlmodel.read(tiny.model(house.folder / "asked"))
    house.with_index(find_links=(str(tiny.wheels),))
    environments = house.environments
    ready = environments.ready(environments.ask(model)).environment

    async def ask_and_release(model: Model, environment: Environment) -> list[bytes]:
        processes.attach()
        pool = Pool(house.settings, environments.store, processes)
        answers = [asyncio.create_task(pool.predict(model, environment, REQUEST)) for _ in range(3)]
        try:
            # In every turn of the loop: between a worker's start and its first request as well.
            while not all(answer.done() for answer in answers):
                await pool.release(environment.id)
                await asyncio.sleep(0)
            return [answer.result().payload for answer in answers]
        finally:
            await pool.close()

    assert len(set(asyncio.run(ask_and_release(model, ready)))) == 1


def test_what_is_to_stay_is_not_stopped_for_being_idle(stage: Stage) -> None:
    settings = stage.house.settings
    stage.house.settings = replace(settings, workers=Workers(idle_timeout=Seconds(0.01)))
    kept, kept_in = stage.model("kept", ECHO)
    idle, idle_in = stage.model("idle", ECHO)

    async def play(pool: Pool) -> None:
        await pool.load(kept, kept_in, Serving(stay=True))
        await pool.load(idle, idle_in)
        stopping = asyncio.create_task(pool.run())
        # The one that was loaded first has been idle for longer.
        await until(lambda: [q.crew.model for _, q in pool.loaded() if q.crew.workers] == [kept])
        stopping.cancel()

    stage.run(play)
    assert "idle" in stage.watch.gone


def test_workers_that_may_not_be_idle_at_all_are_no_reason_to_look_all_the_time(
    house: House, processes: Processes
) -> None:
    settings = replace(house.settings, workers=Workers(idle_timeout=Seconds(0)))
    looks: list[float] = []

    def clock() -> float:
        looks.append(time.monotonic())
        return looks[-1]

    async def look() -> None:
        processes.attach()
        pool = Pool(settings, Store(settings.root), processes, clock)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(pool.run(), 1)
        await pool.close()

    asyncio.run(look())

    assert 1 < len(looks) < 50


def test_what_was_unloaded_while_it_was_loaded_can_be_loaded_again(stage: Stage) -> None:
    model, environment = stage.model("again", ECHO)

    async def play(pool: Pool) -> None:
        loading = asyncio.create_task(pool.load(model, environment))
        await until(lambda: any(queue.crew.is_starting for _, queue in pool.loaded()))
        pool.unload(model.path)
        await loading
        pool.unload(model.path)
        await pool.load(model, environment)
        found = await pool.predict(model, environment, request(1))
        assert (answer(found), found.origin) == (["2.0", 1], "warm")

    stage.run(play)
