"""Workers forked from a template: when there is one, and that nobody can tell by the answer."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from envd.errors import WorkerDiedError
from envd.model import Model, mlmodel
from envd.run import templates
from envd.run.pool import Pool
from envd.run.serving import Serving
from envd.store import Environment, removal
from tests.conftest import is_running
from tests.stage import Stage, answer, outcome, request, until

BODY = "        import os\n        return [tiny_a.VERSION, os.getppid(), data]"
RANDOM = "        import random, uuid\n        return [random.random(), str(uuid.uuid4())]"


def pair(stage: Stage, body: str = BODY) -> tuple[tuple[Model, Environment], ...]:
    """Return two models of one environment."""
    first, second = stage.model("first", body), stage.model("second", body)
    assert first[1] == second[1]
    return first, second


def test_the_second_model_of_an_environment_is_forked_and_answers_the_same(stage: Stage) -> None:
    (one, environment), (two, _) = pair(stage)

    async def play(pool: Pool) -> None:
        fresh = await pool.predict(one, environment, request([1]))
        forked = await pool.predict(two, environment, request([1]))
        again = await pool.predict(two, environment, request([1]))
        assert [found.origin for found in (fresh, forked, again)] == ["fresh", "forked", "warm"]
        assert forked.why == "its environment has a template"
        version, parent, data = answer(fresh)
        assert answer(forked)[0::2] == [version, data]
        # Its parent is the template, which is no child of this process.
        assert answer(forked)[1] != parent
        assert forked.start_seconds < 10 * fresh.start_seconds

    stage.run(play)
    assert stage.watch.started == ["fresh", "forked"]


def test_forked_workers_draw_numbers_of_their_own(stage: Stage) -> None:
    models = [stage.model(f"m{number}", RANDOM) for number in range(4)]

    async def play(pool: Pool) -> None:
        found = [await pool.predict(*one, request(1)) for one in models]
        assert [one.origin for one in found] == ["fresh", *["forked"] * 3]
        assert len({one.payload for one in found}) == 4
        assert len({answer(one)[0] for one in found}) == 4

    stage.run(play)


@pytest.mark.parametrize(
    ("serving", "why"),
    [
        (Serving(template=False), "templates are off"),
        (Serving(env=(("A", "b"),)), "it has variables of its own"),
    ],
)
def test_where_no_template_is_wanted_there_is_none(
    stage: Stage, serving: Serving, why: str
) -> None:
    (one, environment), (two, _) = pair(stage)

    async def play(pool: Pool) -> None:
        await pool.predict(one, environment, request(1), serving)
        found = await pool.predict(two, environment, request(1), serving)
        assert (found.origin, found.why) == ("fresh", why)

    stage.run(play)


def test_an_environment_may_be_kept_from_having_one(stage: Stage) -> None:
    (one, environment), (two, _) = pair(stage)
    workers = replace(stage.house.settings.workers, without_template=(environment.id[:8],))
    stage.house.settings = replace(stage.house.settings, workers=workers)

    async def play(pool: Pool) -> None:
        await pool.predict(one, environment, request(1))
        found = await pool.predict(two, environment, request(1))
        assert (found.origin, found.why) == ("fresh", "templates are off")

    stage.run(play)


def test_a_model_that_a_fork_would_change_is_run_fresh_and_the_answer_says_why(
    stage: Stage,
) -> None:
    first = stage.model("first", BODY)
    shadow = stage.model("shadow", BODY)
    (shadow[0].path / "code" / "tiny_a.py").write_text("VERSION = 'its own'\n")
    setter = stage.model("setter", BODY)
    loader = setter[0].path / "code" / "tiny_loader.py"
    loader.write_text("import os\nos.environ['A'] = 'b'\n" + loader.read_text())
    shadow, setter = ((mlmodel.read(model.path), found) for model, found in (shadow, setter))

    async def play(pool: Pool) -> None:
        await pool.predict(*first, request(1))
        for (model, environment), word in ((shadow, "tiny_a"), (setter, "variables A")):
            found = await pool.predict(model, environment, request(1))
            assert found.origin == "fresh"
            assert word in found.why
        assert answer(await pool.predict(*shadow, request(1)))[0] == "its own"

    stage.run(play)


def test_a_forked_worker_that_dies_costs_its_own_request(stage: Stage) -> None:
    body = "        import os\n        if 'die' in str(data): os.kill(os.getpid(), 11)\n" + BODY
    (one, environment), (two, _) = pair(stage, body)
    three = stage.model("third", body)

    async def play(pool: Pool) -> None:
        await pool.predict(one, environment, request(1))
        await pool.predict(two, environment, request(1))
        await pool.predict(*three, request(1))
        died = await outcome(pool.predict(two, environment, request("die")))
        assert died.metadata["cause"] == "SIGSEGV"
        assert (await pool.predict(*three, request(1))).origin == "warm"
        assert (await pool.predict(two, environment, request(1))).origin == "forked"

    stage.run(play)


def test_a_template_that_is_killed_is_followed_by_another_worker(stage: Stage) -> None:
    (one, environment), (two, _) = pair(stage)

    async def play(pool: Pool) -> None:
        await pool.predict(one, environment, request(1))
        template = answer(await pool.predict(two, environment, request(1)))[1]
        os.kill(template, signal.SIGKILL)
        await until(lambda: len(stage.watch.died) == 1)
        found = await pool.predict(two, environment, request(1))
        assert found.origin == "forked"
        assert answer(found)[1] != template

    stage.run(play)


def test_what_has_a_template_can_be_removed_when_nobody_uses_it(stage: Stage) -> None:
    (one, environment), (two, _) = pair(stage)
    store = stage.house.environments.store

    async def play(pool: Pool) -> None:
        await pool.predict(one, environment, request(1))
        await pool.predict(two, environment, request(1))
        await pool.release(environment.id)
        await asyncio.to_thread(removal.remove, store, environment.id)

    stage.run(play)
    assert stage.watch.gone == ["released"] * 3


def test_what_is_known_of_an_environment_goes_with_it(stage: Stage) -> None:
    (one, environment), (two, _) = pair(stage)
    store = stage.house.environments.store

    async def play(pool: Pool) -> None:
        known = pool._workshop.templates._known
        for _ in range(3):
            found = stage.house.environments
            again = found.ready(found.ask(one)).environment
            await pool.predict(one, again, request(1))
            assert (await pool.predict(two, again, request(1))).origin == "forked"
            assert list(known) == [again.prefix]
            await pool.release(environment.id)
            await asyncio.to_thread(removal.remove, store, environment.id)

    stage.run(play)


def test_an_idle_template_goes_after_its_workers(stage: Stage) -> None:
    (one, environment), (two, _) = pair(stage)
    workers = replace(stage.house.settings.workers, idle_timeout=0.2)
    stage.house.settings = replace(stage.house.settings, workers=workers)

    async def play(pool: Pool) -> None:
        await pool.predict(one, environment, request(1))
        await pool.predict(two, environment, request(1))
        upkeep = asyncio.create_task(pool.run())
        await until(lambda: stage.watch.gone == ["idle"] * 3)
        upkeep.cancel()

    stage.run(play)
    leases = Path("/proc/locks").read_text()
    lease = stage.house.environments.store.layout.leased(environment.id)
    assert f":{lease.stat().st_ino} " not in leases


def test_where_the_template_cannot_be_used_models_are_run_fresh(stage: Stage) -> None:
    # A module that starts a thread when it is imported: forks would lack it.
    site = next(stage.model("first", BODY)[1].prefix.glob("lib/python*/site-packages"))
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True)"
    (site / "tiny_a.py").unlink()
    (site / "tiny_a.py").write_text(thread + ".start()\nVERSION = '2.0'\n")
    models = [stage.model(name, BODY) for name in ("second", "third")]

    async def play(pool: Pool) -> None:
        found = [await pool.predict(*one, request(1)) for one in models]
        assert [one.origin for one in found] == ["fresh"] * 2
        assert "thread" in found[1].why
        assert json.loads(found[1].payload)["predictions"][0] == "2.0"

    stage.run(play)


def test_many_models_asked_for_at_once_share_what_the_first_one_imports(stage: Stage) -> None:
    models = [stage.model(f"m{number}", BODY) for number in range(20)]

    async def play(pool: Pool) -> None:
        found = await asyncio.gather(*(pool.predict(*one, request([1])) for one in models))
        assert Counter(one.origin for one in found) == {"fresh": 1, "forked": 19}
        assert {answer(one)[0] for one in found} == {"2.0"}
        # They have one parent, and the fresh one another.
        assert sorted(Counter(answer(one)[1] for one in found).values()) == [1, 19]

    stage.run(play)


@pytest.mark.parametrize("loading", ["raise OSError", "import time; time.sleep(600)"])
def test_a_first_model_that_is_not_loaded_keeps_the_others_from_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, loading: str
) -> None:
    if "sleep" in loading:
        monkeypatch.setattr(templates, "_PATIENCE_S", 0.5)
    path = stage.model("broken", BODY)[0].path
    (path / "code" / "tiny_loader.py").write_text(loading)
    broken, others = mlmodel.read(path), [stage.model(f"m{number}", BODY) for number in range(5)]
    environment = others[0][1]

    async def play(pool: Pool) -> None:
        failing = asyncio.create_task(outcome(pool.predict(broken, environment, request(1))))
        await asyncio.sleep(0)
        found = await asyncio.gather(*(pool.predict(*one, request([1])) for one in others))
        assert {answer(one)[0] for one in found} == {"2.0"}
        failing.cancel()

    stage.run(play)
    # All have waited for the same one no longer than they have to.
    assert "forked" in stage.watch.started or "sleep" in loading


def test_a_template_that_does_not_answer_is_ended_and_models_are_run_fresh(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "_DEAF_S", 0.5)
    (one, environment), (two, _) = pair(stage)
    three = stage.model("third", BODY)

    async def play(pool: Pool) -> None:
        await pool.predict(one, environment, request(1))
        template = answer(await pool.predict(two, environment, request(1)))[1]
        os.kill(template, signal.SIGSTOP)
        found = await pool.predict(*three, request(1))
        assert (found.origin, found.why) == ("fresh", "its template does not answer")
        # Its workers went with it, and there is another one for those to come.
        await until(lambda: stage.watch.died == ["SIGKILL"])
        assert (await pool.predict(two, environment, request(1))).origin == "forked"

    stage.run(play)


def test_a_worker_whose_template_does_not_answer_is_ended_all_the_same(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "_DEAF_S", 0.5)
    (one, environment), (two, _) = pair(stage)

    async def play(pool: Pool) -> None:
        await pool.predict(one, environment, request(1))
        template = answer(await pool.predict(two, environment, request(1)))[1]
        os.kill(template, signal.SIGSTOP)
        await asyncio.wait_for(pool.release(environment.id), 10)
        # The kernel ends it when its outer process has ended.
        await until(lambda: not is_running(template))

    stage.run(play)


@pytest.mark.parametrize("times", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_a_template_that_is_killed_while_it_forks_costs_nobody_an_answer(
    stage: Stage, times: int
) -> None:
    (one, environment), (two, _) = pair(stage)
    chance = random.Random(times)

    async def play(pool: Pool) -> None:
        await pool.predict(one, environment, request(1))
        for number in range(times):
            template = answer(await pool.predict(two, environment, request(1)))[1]
            batch = [replace(two, digest=f"{number}-{other}" * 16) for other in range(5)]
            asked = [
                asyncio.create_task(pool.predict(model, environment, request(1))) for model in batch
            ]
            await asyncio.sleep(chance.random() / 20)
            if is_running(template) and template != os.getpid():
                os.kill(template, signal.SIGKILL)
            assert {(await outcome(task)).__class__ for task in asked} <= {list, WorkerDiedError}
            await until(lambda: not is_running(template))  # noqa: B023

    stage.run(play)
