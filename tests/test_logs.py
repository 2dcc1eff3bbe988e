"""What models say: as much of it is kept as may be, the end of it, while they go on."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from envd.errors import WorkerDiedError
from envd.run.pool import Pool
from tests.stage import Stage, answer, outcome, request, until

MOST = 100_000
FLOOD = """
        import os
        word, count = data
        for number in range(count):
            print(word, number, "x" * 100)
        return os.getpid()
"""


def test_a_log_is_cut_to_its_end_while_it_is_being_written(stage: Stage) -> None:
    workers = replace(stage.house.settings.workers, max_log=MOST)
    stage.house.settings = replace(stage.house.settings, workers=workers)
    model, environment = stage.model("talks", FLOOD)
    other = stage.model(
        "other", FLOOD + "        # Another one: models that are alike share a log.\n"
    )

    async def play(pool: Pool) -> None:
        upkeep = asyncio.create_task(pool.run())
        pid = answer(await pool.predict(model, environment, request(["first", 20_000])))
        await pool.predict(*other, request(["few", 3]))
        log = stage.house.root / "logs" / f"worker-{model.digest[:16]}.log"
        await until(lambda: log.stat().st_size <= MOST)
        assert log.read_text().endswith(f"first 19999 {'x' * 100}\n")
        assert len(log.read_text()) >= MOST // 2
        # The worker goes on where the log now ends.
        assert answer(await pool.predict(model, environment, request(["second", 1]))) == pid
        assert log.read_text().endswith(f"second 0 {'x' * 100}\n")
        upkeep.cancel()
        short = stage.house.root / "logs" / f"worker-{other[0].digest[:16]}.log"
        assert len(short.read_text().splitlines()) == 3

    stage.run(play)


def test_what_a_worker_writes_last_is_cut_as_well(stage: Stage) -> None:
    workers = replace(stage.house.settings.workers, max_log=MOST)
    stage.house.settings = replace(stage.house.settings, workers=workers)
    model, environment = stage.model("talks", FLOOD.replace("return os.getpid()", "os._exit(3)"))
    log = stage.house.root / "logs" / f"worker-{model.digest[:16]}.log"

    async def play(pool: Pool) -> None:
        died = await outcome(pool.predict(model, environment, request(["last", 20_000])))
        assert isinstance(died, WorkerDiedError)
        assert log.stat().st_size > MOST
        upkeep = asyncio.create_task(pool.run())
        await until(lambda: log.stat().st_size <= MOST)
        upkeep.cancel()

    stage.run(play)
