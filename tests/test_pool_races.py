"""What must not be left undone in a pool: requests, workers and starts that nobody goes on with."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import shutil
import signal
import weakref
from dataclasses import replace
from pathlib import Path

import pytest

from envd.errors import (
    LimitReachedError,
    RequestKillsWorkersError,
    RootUnusableError,
    WorkerDiedError,
)
from envd.run.breaker import Breaker, Suspects
from envd.run.pool import Pool, Request
from envd.run.processes import Processes
from envd.run.queue import Queue
from envd.run.serving import Serving
from tests.stage import Stage, answer, outcome, request, until
from tests.test_queue import MORTAL, PID

# A batch that dies of one of its requests; one alone says that it is at it, and waits.
BATCHED = """
        import os, pathlib, time
        folder = pathlib.Path("{folder}")
        if "first" in data:
            (folder / "began").touch()
            while not (folder / "go").exists():
                time.sleep(0.01)
        if "die" in data and len(data) > 1:
            os.kill(os.getpid(), 11)
        if data == ["slow"]:
            (folder / "alone").touch()
            while not (folder / "on").exists():
                time.sleep(0.01)
        return data
"""


class Payload(bytearray):
    """One that can be told to be gone."""


def only(pool: Pool) -> Queue:
    """Return the queue of the only model of *pool*."""
    ((_, found),) = pool.loaded()
    return found


def test_what_waits_behind_a_request_whose_caller_left_is_asked_next(stage: Stage) -> None:
    model, environment = stage.model("left", MORTAL.format(folder=stage.house.folder))
    serving = Serving(concurrency=1)

    async def play(pool: Pool) -> None:
        first = asyncio.create_task(pool.predict(model, environment, request("wait"), serving))
        await until((stage.house.folder / "began").exists)
        behind = asyncio.create_task(pool.predict(model, environment, request(1), serving))
        await asyncio.sleep(0)
        first.cancel()
        (stage.house.folder / "go").touch()
        assert isinstance(answer(await asyncio.wait_for(behind, 20)), int)

    stage.run(play)


def test_a_worker_kept_for_one_request_is_free_when_its_caller_has_left(stage: Stage) -> None:
    model, environment = stage.model("kept", BATCHED.format(folder=stage.house.folder))
    serving = Serving(batch=True)

    async def play(pool: Pool) -> None:
        first = asyncio.create_task(pool.predict(model, environment, request(["first"]), serving))
        await until((stage.house.folder / "began").exists)
        kinds = ["slow", "die"]
        batch = [
            asyncio.create_task(outcome(pool.predict(model, environment, request([kind]), serving)))
            for kind in kinds
        ]
        await asyncio.sleep(0)
        (stage.house.folder / "go").touch()
        await first
        # The batch has died, and each is asked alone.
        await until((stage.house.folder / "alone").exists)
        batch[0].cancel()
        await asyncio.sleep(0)
        (stage.house.folder / "on").touch()
        assert await asyncio.wait_for(batch[1], 20) == ["die"]
        later = pool.predict(model, environment, request([1]), serving)
        assert answer(await asyncio.wait_for(later, 20)) == [1]

    stage.run(play)


def test_those_who_leave_cost_one_look_at_their_worker(stage: Stage) -> None:
    model, environment = stage.model("looked", MORTAL.format(folder=stage.house.folder))
    workers = replace(stage.house.settings.workers, stop_grace=30.0)
    stage.house.settings = replace(stage.house.settings, workers=workers)

    async def play(pool: Pool) -> None:
        busy = asyncio.create_task(pool.predict(model, environment, request("wait")))
        await until((stage.house.folder / "began").exists)
        timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        before = len(timers)
        for number in range(50):
            left = asyncio.create_task(pool.predict(model, environment, request(number)))
            await asyncio.sleep(0)
            left.cancel()
            await asyncio.sleep(0)
        assert len(timers) <= before + 1
        (stage.house.folder / "go").touch()
        await busy

    stage.run(play)


def test_a_request_that_kills_is_known_though_its_callers_leave(stage: Stage) -> None:
    body = MORTAL.replace('if kind == "wait"', 'if kind in ("wait", "fall")').replace(
        "return os.getpid()",
        'if kind == "fall":\n            os.kill(os.getpid(), 11)\n        return os.getpid()',
    )
    model, environment = stage.model("fall", body.format(folder=stage.house.folder))

    async def play(pool: Pool) -> None:
        for deaths in (1, 2):
            (stage.house.folder / "began").unlink(missing_ok=True)
            (stage.house.folder / "go").unlink(missing_ok=True)
            task = asyncio.create_task(outcome(pool.predict(model, environment, request("fall"))))
            await until((stage.house.folder / "began").exists)
            task.cancel()
            await asyncio.sleep(0)
            (stage.house.folder / "go").touch()
            await until(lambda: len(stage.watch.died) == deaths)  # noqa: B023
            assert isinstance(await outcome(pool.predict(model, environment, request(1))), int)
        refused = await outcome(pool.predict(model, environment, request("fall")))
        assert isinstance(refused, RequestKillsWorkersError)

    stage.run(play)


def test_workers_of_a_model_that_was_unloaded_do_not_come_and_go(stage: Stage) -> None:
    model, environment = stage.model("pair", PID)
    serving = Serving(workers=2, template=False)

    async def play(pool: Pool) -> None:
        await pool.predict(model, environment, request(1), serving)
        await until(lambda: len(only(pool).crew.workers) == 2)
        pool.unload(model.path)
        await until(lambda: not only(pool).crew.workers)
        await pool.predict(model, environment, request(1), serving)
        await until(lambda: len(stage.watch.started) >= 4)
        pids = {one.process.pid for one in only(pool).crew.workers}
        await asyncio.sleep(0.5)
        assert {one.process.pid for one in only(pool).crew.workers} == pids

    stage.run(play)
    assert stage.watch.started == ["fresh"] * 4


def test_a_second_worker_that_cannot_be_had_is_not_tried_all_the_time(stage: Stage) -> None:
    model, environment = stage.model("one", PID)
    folder = stage.house.folder
    loader = model.path / "code" / "tiny_loader.py"
    loader.write_text(
        f"import os, pathlib\nopen({str(folder / 'loads')!r}, 'a').write('x')\n"
        f"os.mkdir({str(folder / 'license')!r})\n" + loader.read_text()
    )

    async def play(pool: Pool) -> None:
        serving = Serving(workers=2, template=False)
        for _ in range(20):
            await pool.predict(model, environment, request(1), serving)
            await until(lambda: not only(pool).crew.is_starting)
        await asyncio.sleep(0.5)

    stage.run(play)
    assert len((folder / "loads").read_text()) <= 3


def test_what_the_machine_refuses_is_said_once_to_whoever_loads(stage: Stage) -> None:
    model, environment = stage.model("none", PID)
    scratch = stage.house.environments.store.layout.scratch

    async def play(pool: Pool) -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.touch()
        with pytest.raises(RootUnusableError, match="scratch"):
            await asyncio.wait_for(pool.load(model, environment), 10)
        scratch.unlink()
        await pool.load(model, environment)

    stage.run(play)


def test_whoever_loads_while_all_is_closed_is_let_go(stage: Stage) -> None:
    model, environment = stage.model("late", PID)
    slow = model.path / "code" / "tiny_loader.py"
    slow.write_text("import time\ntime.sleep(60)\n")

    async def play(pool: Pool) -> None:
        loading = asyncio.create_task(pool.load(model, environment))
        await until(lambda: any(queue.crew.is_starting for _, queue in pool.loaded()))
        await asyncio.sleep(0.1)
        await pool.close()
        await asyncio.wait([loading], timeout=10)
        assert loading.cancelled()

    stage.run(play)


def test_what_is_loaded_while_the_last_worker_leaves_is_there_afterwards(stage: Stage) -> None:
    model, environment = stage.model("stays", MORTAL.format(folder=stage.house.folder))

    async def play(pool: Pool) -> None:
        busy = asyncio.create_task(pool.predict(model, environment, request("wait")))
        await until((stage.house.folder / "began").exists)
        pool.unload(model.path)
        await pool.load(model, environment)
        (stage.house.folder / "go").touch()
        old = answer(await busy)
        found = await pool.predict(model, environment, request(1))
        assert (found.origin, answer(found) == old) == ("warm", False)

    stage.run(play)


def test_workers_that_die_together_are_one_failure() -> None:
    now = [100.0]
    breaker = Breaker(lambda: now[0])
    for _ in range(8):
        breaker.failed(WorkerDiedError("it died"), born=90.0)
    assert breaker.open_error() is None
    now[0] += 1
    breaker.failed(WorkerDiedError("it died"), born=100.5)
    assert breaker.open_error() is not None


def test_deaths_of_what_loads_well_keep_nobody_out_for_long() -> None:
    now = [100.0]
    loaded, broken = Breaker(lambda: now[0]), Breaker(lambda: now[0])
    # One that fails for days does not overflow.
    for _ in range(2000):
        now[0] += 100
        loaded.failed(WorkerDiedError("it died"), born=now[0] - 1)
        broken.failed(WorkerDiedError("it died"))
    waits = [one.retry_after_s for one in (loaded.open_error(), broken.open_error()) if one]
    assert waits == [1.0, 30.0]


def test_what_is_remembered_of_a_failure_is_not_the_request_that_met_it(stage: Stage) -> None:
    model, environment = stage.model("refuses", "        import os\n        os._exit(3)")

    async def play(pool: Pool) -> None:
        payload = Payload(request("x" * 100_000).payload)
        there = weakref.ref(payload)
        died = await outcome(
            pool.predict(model, environment, Request(payload, "application/json", None))
        )
        assert isinstance(died, WorkerDiedError)
        await until(lambda: stage.watch.died != [])
        assert only(pool).crew.breaker.open_error() is None
        del payload, died
        # What has woken this up has the error.
        await asyncio.sleep(0)
        gc.collect()
        assert there() is None
        assert not only(pool).crew.breaker.is_forgotten

    stage.run(play)


def test_a_suspicion_ends_with_time_and_with_an_answer() -> None:
    now = [100.0]
    suspects = Suspects(lambda: now[0])
    assert not suspects.accuse(b"{}", b"once a day")
    now[0] += 86400
    assert not suspects.accuse(b"{}", b"once a day")
    suspects.clear(b"{}", b"once a day")
    assert not suspects.accuse(b"{}", b"once a day")
    assert suspects.accuse(b"{}", b"once a day")
    assert suspects.are_deadly(b"{}", b"once a day")
    now[0] += 86400
    assert not suspects.are_deadly(b"{}", b"once a day")


def test_nobody_is_blamed_for_the_death_of_a_template(stage: Stage) -> None:
    body = MORTAL.replace("return os.getpid()", "return os.getppid()")
    body = body.format(folder=stage.house.folder)
    (one, environment), (two, _) = stage.model("first", body), stage.model("second", body)

    async def play(pool: Pool) -> None:
        await pool.predict(one, environment, request(1))
        for _ in range(2):
            (stage.house.folder / "began").unlink(missing_ok=True)
            template = answer(await pool.predict(two, environment, request(1)))
            asked = asyncio.create_task(outcome(pool.predict(two, environment, request("wait"))))
            await until((stage.house.folder / "began").exists)
            os.kill(int(str(template)), signal.SIGKILL)
            assert isinstance(await asked, WorkerDiedError)
        (stage.house.folder / "go").touch()
        found = await pool.predict(two, environment, request("wait"))
        assert found.origin == "forked"

    stage.run(play)


def test_a_passing_shortage_costs_no_model_its_template(stage: Stage) -> None:
    (one, environment), (two, _) = stage.model("first", PID), stage.model("second", PID)

    async def play(pool: Pool) -> None:
        await pool.predict(one, environment, request(1))
        spawner = spawner_of(os.getpid())
        before = resource.prlimit(spawner, resource.RLIMIT_NOFILE)
        taken = len(await asyncio.to_thread(os.listdir, f"/proc/{spawner}/fd"))
        resource.prlimit(spawner, resource.RLIMIT_NOFILE, (taken, before[1]))
        refused = await outcome(pool.predict(two, environment, request(1)))
        resource.prlimit(spawner, resource.RLIMIT_NOFILE, before)
        assert isinstance(refused, LimitReachedError)
        assert (await pool.predict(two, environment, request(1))).origin == "forked"

    stage.run(play)


def spawner_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    commands = {int(one): Path(f"/proc/{one}/cmdline").read_text() for one in children}
    return next(one for one, command in commands.items() if "spawner" in command)


def test_whoever_leaves_while_workers_are_stopped_leaves_none_behind(stage: Stage) -> None:
    model, environment = stage.model("stubborn", PID)
    loader = model.path / "code" / "tiny_loader.py"
    stubborn = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n"
    loader.write_text(stubborn + loader.read_text())

    async def play(pool: Pool) -> None:
        await pool.predict(model, environment, request(1))
        (worker,) = only(pool).crew.workers
        releasing = asyncio.create_task(pool.release(environment.id))
        await until(lambda: worker.is_stopping)
        releasing.cancel()
        await until(worker.process.exited.done)

    stage.run(play)


def test_a_worker_that_has_gone_is_not_replaced(stage: Stage) -> None:
    model, environment = stage.model("gone", PID)

    async def play(pool: Pool) -> None:
        await pool.predict(model, environment, request(1))
        crew = only(pool).crew
        (worker,) = crew.workers
        await pool.release(environment.id)
        crew.replace(worker, "recycled")
        assert not crew.is_starting

    stage.run(play)


def test_hundreds_of_starts_at_once_do_not_hang(tmp_path: Path) -> None:
    processes = Processes.create()

    async def play() -> None:
        processes.attach()
        env = {"FILLS": "x" * 4000}
        starts = [
            processes.start(["/bin/true"], env=env, cwd=tmp_path, log=tmp_path / "log")
            for _ in range(600)
        ]
        found = await asyncio.gather(*starts)
        await asyncio.gather(*(one.exited for one in found))

    try:
        asyncio.run(asyncio.wait_for(play(), 60))
    finally:
        processes.close()
