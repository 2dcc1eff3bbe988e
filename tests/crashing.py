"""Works below a root in forked processes that are killed, or whose disk fails.

`python -m tests.crashing ROOT SEED ROUNDS` kills them at random moments and prints how
often; what goes wrong ends it. `python -m tests.crashing` reads one request per line, `[root,
operation, failpoint]`, and answers with how the operation's process has ended and what it
raised. A process of its own does this, for a fork needs one without threads.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from envd import config, model
from envd.environments.environments import Environments
from envd.errors import EnvdError, EnvironmentInUseError, EnvironmentPinnedError, SolveFailedError
from envd.settings.sections import Gc
from envd.store import collecting, removal, trash
from envd.store.collecting import Criteria
from tests import fake
from tests.fake import Fake

_NUMBERS = (1, 2, 3)
_ACTORS = (1, 1, 2, 3)


def kill_at_random(root: Path, seed: str, rounds: int) -> dict[str, int]:
    """Let a few processes work at random and kill them, again and again; return what was seen."""
    chance, made = random.Random(seed), Fake(root)
    made.create()
    pace_s = _pace(made)
    # What is shared with the forked is not copied then.
    gc.freeze()
    seen: Counter[str] = Counter()
    for count in range(rounds):
        pids = [
            _fork(lambda seed=f"{seed} {count} {actor}": _work_for_ever(made, seed))
            for actor in range(chance.choice(_ACTORS))
        ]
        for pid in pids:
            time.sleep(chance.uniform(0, 2 * pace_s) / len(pids))
            os.kill(pid, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert status == -signal.SIGKILL, f"round {count}: a process ended with {status}"
        # However busy the machine gets: some are killed before they are through, some after.
        pace_s *= 0.85 if _see(made, seen, count) else 1.05
    return dict(seen)


def _see(made: Fake, seen: Counter[str], count: int) -> bool:
    """See that nothing half built is served, and that nothing is left after the sweep.

    Return whether any environment was ready.
    """
    before = seen["ready"]
    seen["half built"] += any(
        not (home / "ready.json").exists() for home in made.store.layout.environments.glob("*")
    )
    for number in _NUMBERS:
        seen["ready"] += made.store.find(fake.env_id(number)) is not None
        wrong = fake.check(made.store, fake.env_id(number))
        assert not wrong, f"round {count}: half built: {wrong}"
    fake.tidy(made.store)
    left = fake.remains(made.store)
    assert not left, f"round {count}: left over: {left}"
    return seen["ready"] > before


def _pace(made: Fake) -> float:
    """Return how long a build takes when nothing disturbs it, in seconds."""
    for work in _WORK:
        work(made, _NUMBERS[0])
    removal.remove(made.store, fake.env_id(_NUMBERS[0]))
    taken_s = []
    for number in _NUMBERS:
        began = time.monotonic()
        found = made.build(number)
        taken_s.append(time.monotonic() - began)
        removal.remove(made.store, found.id)
    return min(taken_s)


def _fork(work: Callable[[], None]) -> int:
    """Do *work* in a process that ends with it."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(status)


def _work_for_ever(made: Fake, seed: str) -> None:
    chance = random.Random(seed)
    works, weights = list(_WORK), list(_WORK.values())
    while True:
        (work,) = chance.choices(works, weights)
        work(made, chance.choice(_NUMBERS))


def _build(made: Fake, number: int) -> None:
    made.build(number)


def _use(made: Fake, number: int) -> None:
    if taken := made.store.lease(fake.env_id(number)):
        found, lease = taken
        wrong = fake.faults(made.store, found)
        assert not wrong, f"half built, and leased: {wrong}"
        made.store.uses.record(found.id)
        made.store.uses.record_model(found.id, Path("/models", str(number)))
        wrong = fake.faults(made.store, found)
        assert not wrong, f"removed or changed while it was leased: {wrong}"
        lease.close()


def _remove(made: Fake, number: int) -> None:
    try:
        removal.remove(made.store, fake.env_id(number))
    except (EnvironmentInUseError, EnvironmentPinnedError):
        return


def _remove_by_force(made: Fake, number: int) -> None:
    removal.by_force(made.store, fake.env_id(number), lambda: time.sleep(0.001))


def _collect(made: Fake, _: int) -> None:
    collecting.collect(made.store, Gc(), Criteria(force=True, unused_for=0.0))


def _collect_some(made: Fake, number: int) -> None:
    collecting.collect(made.store, Gc(), Criteria(force=True, max_size=1, keep=number))


def _tidy(made: Fake, _: int) -> None:
    fake.tidy(made.store)


def _pin(made: Fake, number: int) -> None:
    made.store.pin(fake.env_id(number))
    made.store.unpin(fake.env_id(number))


def _fail(made: Fake, number: int) -> None:
    error = SolveFailedError("there is no such package")
    made.store.failures.remember(fake.spec_key(number), None, error, {})


def _change_base(made: Fake, _: int) -> None:
    made.change_base()


def _list(made: Fake, _: int) -> None:
    made.store.records()


# How often it is done, of all.
_WORK = {
    _build: 40, _use: 15, _remove: 12, _remove_by_force: 6, _collect: 5, _collect_some: 5,
    _tidy: 5, _pin: 4, _fail: 2, _list: 4, _change_base: 2,
}  # fmt: skip


def answer(root: Path, operation: str, failpoint: str) -> dict[str, object]:
    """Do *operation* with *failpoint* armed; return its end, what it said, what it raised."""
    reading, writing = os.pipe()

    def work() -> None:
        os.environ["ENVD_FAILPOINT"] = failpoint
        said: dict[str, object] = {"said": None, "raised": None}
        try:
            said["said"] = _OPERATIONS[operation](root)
        except EnvdError as error:
            said["raised"] = error.reason
        except OSError as error:
            said["raised"] = error.errno
        os.write(writing, json.dumps(said).encode())

    pid = _fork(work)
    os.close(writing)
    with open(reading) as file:  # noqa: PTH123
        text = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {"status": status} | (json.loads(text) if text else {})


def _ready(name: str) -> Callable[[Path], object]:
    def ready(root: Path) -> object:
        environments = Environments(config.load(root=root))
        asked = environments.ask(model.read(root.parent / name))
        return str(environments.ready(asked).environment.python)

    return ready


def _leased(root: Path) -> object:
    _use(made := Fake(root), 1)
    return made.store.layout.used(fake.env_id(1)).stat().st_size


def _freed(root: Path) -> object:
    made = Fake(root)
    removal.remove(made.store, fake.env_id(1))
    return collecting.collect(
        made.store, Gc(), Criteria(force=True, unused_for=0.0)
    ).downloads_freed


_OPERATIONS: dict[str, Callable[[Path], object]] = {
    "build": lambda root: str(Fake(root).build(1).python),
    "ready": _ready("model"),
    "ready of what is not there": _ready("impossible"),
    "lease": _leased,
    "collect": lambda root: _collect(Fake(root), 1),
    "evict": _freed,
    "remove": lambda root: removal.remove(Fake(root).store, fake.env_id(1)),
    "remove by force": lambda root: _remove_by_force(Fake(root), 1),
    "empty": lambda root: trash.empty(root / "trash"),
}


def main(arguments: list[str]) -> None:
    if arguments:
        root, seed, rounds = arguments
        print(json.dumps(kill_at_random(Path(root), seed, int(rounds))))
        return
    for line in sys.stdin:
        root, operation, failpoint = json.loads(line)
        print(json.dumps(answer(Path(root), operation, failpoint)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
