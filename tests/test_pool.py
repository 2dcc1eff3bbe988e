"""Which workers are stopped: those that nobody asks, and nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from envd.model import Model, mlmodel
from envd.run.pool import Pool, Request
from envd.run.processes import Processes
from envd.store import Environment
from tests.house import House
from tests.tiny import Tiny

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
