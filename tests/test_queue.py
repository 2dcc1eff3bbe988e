"""Requests for one model: who answers, who waits, who dies, and what that costs the others."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

import pytest

from envd.errors import (
    LimitReachedError,
    ModelInvalidError,
    QueueFullError,
    RequestKillsWorkersError,
    WorkerDiedError,
)
from envd.model import mlmodel
from envd.run.pool import Pool
from envd.run.serving import Serving
from tests.stage import Stage, answer, outcome, request, until

PID = "        import os\n        return os.getpid()"
# Dies of what it is told to die of, after it has said that it is at it.
MORTAL = """
        import os, pathlib, time
        kind = data["inputs"] if isinstance(data, dict) else data
        if kind == "die":
            os.kill(os.getpid(), 11)
        if kind == "wait":
            pathlib.Path("{folder}", "began").touch()
            while not pathlib.Path("{folder}", "go").exists():
                time.sleep(0.01)
        return os.getpid()
"""


def test_so_many_workers_as_a_model_has_answer_at_once(stage: Stage) -> None:
    # Each request waits for the other one: with one worker neither would ever end.
    body = f"""
        import pathlib, time
        mine, others = data["inputs"] if isinstance(data, dict) else data
        pathlib.Path("{stage.house.folder}", mine).touch()
        while not pathlib.Path("{stage.house.folder}", others).exists():
            time.sleep(0.01)
        return mine
"""
    model, environment = stage.model("pair", body)

    async def play(pool: Pool) -> None:
        for number in (2, "auto"):
            serving = Serving(workers=number)  # type: ignore[arg-type]
            one = pool.predict(model, environment, request([f"a{number}", f"b{number}"]), serving)
            two = pool.predict(model, environment, request([f"b{number}", f"a{number}"]), serving)
            both = await asyncio.gather(one, two)
            assert [answer(found) for found in both] == [f"a{number}", f"b{number}"]

    stage.run(play)


def test_a_death_costs_what_was_begun_and_nothing_else(stage: Stage) -> None:
    model, environment = stage.model("mortal", MORTAL.format(folder=stage.house.folder))

    async def play(pool: Pool) -> None:
        first = answer(await pool.predict(model, environment, request(1)))
        kinds = ["die", *range(20)]
        asked = [outcome(pool.predict(model, environment, request(kind))) for kind in kinds]
        died, *others = await asyncio.gather(*asked)
        assert isinstance(died, WorkerDiedError)
        assert died.metadata["cause"] == "SIGSEGV"
        assert len(set(others)) == 1
        assert others[0] != first

    stage.run(play)
    assert (stage.watch.started, stage.watch.died) == (["fresh"] * 2, ["SIGSEGV"])


def test_what_kills_workers_again_is_refused_by_name_and_the_rest_is_not(stage: Stage) -> None:
    model, environment = stage.model("mortal", MORTAL.format(folder=stage.house.folder))

    async def play(pool: Pool) -> None:
        found = []
        for _ in range(4):
            found.append(await outcome(pool.predict(model, environment, request("die"))))
            # Whoever has done no harm is answered in between.
            assert isinstance(await outcome(pool.predict(model, environment, request(1))), int)
        assert [type(one) for one in found] == [WorkerDiedError, *[RequestKillsWorkersError] * 3]

    stage.run(play)
    assert len(stage.watch.died) == 2


def test_a_model_that_cannot_be_loaded_is_not_loaded_again_and_again(stage: Stage) -> None:
    model, environment = stage.model("broken", PID)
    loads = stage.house.folder / "loads"
    loader = model.path / "code" / "tiny_loader.py"
    loader.write_text(f"open({str(loads)!r}, 'a').write('x')\nraise OSError('no license')\n")
    model = mlmodel.read(model.path)

    async def play(pool: Pool) -> None:
        for _ in range(50):
            error = await outcome(pool.predict(model, environment, request(1)))
            assert isinstance(error, ModelInvalidError)
            assert "no license" in error.message
        assert error.retry_after_s

    stage.run(play)
    assert len(loads.read_text()) <= 3


def test_more_than_may_wait_are_refused_at_once(stage: Stage) -> None:
    model, environment = stage.model("slow", MORTAL.format(folder=stage.house.folder))
    serving = Serving(queue=3, concurrency=1)

    async def play(pool: Pool) -> None:
        def ask(kind: object) -> asyncio.Task[object]:
            return asyncio.create_task(
                outcome(pool.predict(model, environment, request(kind), serving))
            )

        busy = ask("wait")
        await until((stage.house.folder / "began").exists)
        waiting = [ask(number) for number in range(3)]
        await asyncio.sleep(0)
        refused = await ask(3)
        assert isinstance(refused, QueueFullError)
        assert refused.retry_after_s
        # Who leaves makes room.
        waiting.pop().cancel()
        await asyncio.sleep(0)
        waiting.append(ask(4))
        (stage.house.folder / "go").touch()
        assert {type(one) for one in await asyncio.gather(busy, *waiting)} == {int}

    stage.run(play)


def test_what_nobody_waits_for_is_not_begun(stage: Stage) -> None:
    body = f"""
        import pathlib, time
        with open("{stage.house.folder}/ran", "a") as file:
            print(data, file=file)
        while not pathlib.Path("{stage.house.folder}", "go").exists():
            time.sleep(0.01)
        return 1
"""
    model, environment = stage.model("logged", body)

    async def play(pool: Pool) -> None:
        asked = [
            asyncio.create_task(outcome(pool.predict(model, environment, request(f"n{number}"))))
            for number in range(5)
        ]
        await until((stage.house.folder / "ran").exists)
        # All have been handed to the worker by now, which is at the first.
        for one in asked[1:4]:
            one.cancel()
        await asyncio.sleep(0)
        (stage.house.folder / "go").touch()
        assert await asyncio.gather(asked[0], asked[4]) == [1, 1]

    stage.run(play)
    ran = (stage.house.folder / "ran").read_text()
    assert [f"n{number}" in ran for number in range(5)] == [True, False, False, False, True]
    # And the worker that dropped them goes on.
    assert (stage.watch.started, stage.watch.died) == (["fresh"], [])


def test_a_worker_that_hangs_in_what_nobody_waits_for_is_replaced(stage: Stage) -> None:
    model, environment = stage.model("hangs", MORTAL.format(folder=stage.house.folder))

    async def play(pool: Pool) -> None:
        hung = asyncio.create_task(pool.predict(model, environment, request("wait")))
        await until((stage.house.folder / "began").exists)
        behind = [pool.predict(model, environment, request(number)) for number in range(5)]
        hung.cancel()
        assert len({answer(found) for found in await asyncio.gather(*behind)}) == 1

    stage.run(play)
    assert stage.watch.started == ["fresh"] * 2


def test_a_changed_model_gets_new_workers_while_the_old_ones_end_what_they_have(
    stage: Stage,
) -> None:
    model, environment = stage.model("changed", MORTAL.format(folder=stage.house.folder))

    async def play(pool: Pool) -> None:
        busy = asyncio.create_task(pool.predict(model, environment, request("wait")))
        await until((stage.house.folder / "began").exists)
        changed = replace(model, digest="f" * 64)
        new = answer(await pool.predict(changed, environment, request(1)))
        (stage.house.folder / "go").touch()
        assert answer(await busy) != new
        (_, old), _ = pool.loaded()
        await until(lambda: not old.crew.workers)

    stage.run(play)
    assert stage.watch.gone == ["changed"]


def test_a_worker_is_replaced_after_so_many_answers_with_nobody_the_wiser(stage: Stage) -> None:
    model, environment = stage.model("recycled", PID)
    workers = replace(stage.house.settings.workers, max_requests=10)
    stage.house.settings = replace(stage.house.settings, workers=workers)

    async def play(pool: Pool) -> None:
        pids: list[object] = []
        for _ in range(8):
            asked = [pool.predict(model, environment, request(1)) for _ in range(5)]
            pids += [answer(found) for found in await asyncio.gather(*asked)]
            # The next one is started beside it.
            await until(lambda: not any(queue.crew.is_starting for _, queue in pool.loaded()))
        assert 3 <= len(set(pids)) <= 5

    stage.run(play)
    assert stage.watch.gone.count("recycled") >= 3


def test_beyond_the_memory_budget_the_longest_unused_goes(stage: Stage) -> None:
    models = [stage.model(f"m{number}", PID) for number in range(3)]

    async def play(pool: Pool) -> None:
        for model, environment in models:
            await pool.predict(model, environment, request(1), Serving(template=False))
        sizes: list[int] = []
        await pool.keep_to_memory(1 << 40)
        for _, queue in pool.loaded():
            sizes += [worker.bytes for worker in queue.crew.workers]
        assert all(size > 1 << 20 for size in sizes)
        # One of them has to go: that which was asked first.
        await pool.keep_to_memory(sum(sizes) - min(sizes) // 2)
        left = [key[0].name for key, queue in pool.loaded() if queue.crew.workers]
        assert left == ["m1", "m2"]

    stage.run(play)
    assert stage.watch.gone == ["memory"]


def test_what_cannot_go_is_no_reason_for_the_others_to_stay(stage: Stage) -> None:
    """A template with workers, and a worker that works, have been there for the longest."""
    model, environment = stage.model("busy", MORTAL.format(folder=stage.house.folder))
    others = [stage.model(f"m{number}", PID) for number in range(2)]

    async def play(pool: Pool) -> None:
        busy = asyncio.create_task(pool.predict(model, environment, request("wait")))
        await until((stage.house.folder / "began").exists)
        for one in others:
            await pool.predict(*one, request(1))
        await pool.keep_to_memory(0)
        left = [key[0].name for key, queue in pool.loaded() if queue.crew.workers]
        assert left == ["busy"]
        (stage.house.folder / "go").touch()
        await busy

    stage.run(play)
    assert stage.watch.started[1:] == ["forked", "forked"]
    assert stage.watch.gone == ["memory"] * 2


def test_more_variables_than_can_be_handed_over_are_said_to_be(stage: Stage) -> None:
    model, environment = stage.model("laden", PID)
    env = tuple((f"NAME_{number}", "x" * 1000) for number in range(300))

    async def play(pool: Pool) -> None:
        with pytest.raises(LimitReachedError, match="shorten `env` and `env_file`"):
            await pool.predict(model, environment, request(1), Serving(env=env))
        await pool.predict(model, environment, request(1), Serving(env=env[:50]))

    stage.run(play)


def test_a_worker_that_dies_unasked_is_told_and_the_next_request_gets_another(
    stage: Stage,
) -> None:
    model, environment = stage.model("pid", PID)

    async def play(pool: Pool) -> None:
        pid = answer(await pool.predict(model, environment, request(1)))
        os.kill(int(str(pid)), 9)
        await until(lambda: stage.watch.died == ["SIGKILL"])
        found = await pool.predict(model, environment, request(1))
        assert answer(found) != pid
        assert (found.origin, found.why) == ("fresh", "it is the first model of its environment")

    stage.run(play)


def test_what_is_preloaded_answers_warm(stage: Stage) -> None:
    model, environment = stage.model("early", PID)

    async def play(pool: Pool) -> None:
        await pool.load(model, environment)
        await pool.load(model, environment)
        assert (await pool.predict(model, environment, request(1))).origin == "warm"

    stage.run(play)
    assert stage.watch.started == ["fresh"]


def test_closing_ends_what_waits_and_what_runs(stage: Stage) -> None:
    model, environment = stage.model("hangs", MORTAL.format(folder=stage.house.folder))

    async def play(pool: Pool) -> None:
        asked = [
            asyncio.create_task(outcome(pool.predict(model, environment, request(kind))))
            for kind in ("wait", 1, 2)
        ]
        await until((stage.house.folder / "began").exists)
        await pool.close()
        done, pending = await asyncio.wait(asked, timeout=10)
        assert not pending
        assert isinstance(asked[0].result(), WorkerDiedError)
        assert all(one.cancelled() for one in done - {asked[0]})

    stage.run(play)
