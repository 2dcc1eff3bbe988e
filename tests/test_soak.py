"""One daemon under mixed load, killed and restarted: no prediction fails but for a restart."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import pytest
from envd_client import Client, EnvdError
from grpc import StatusCode

from tests.conftest import Daemon, launch, stop
from tests.tiny import Tiny

SECONDS = 60 * float(os.environ.get("MINUTES", "0.45"))
MODELS = (
    ("tiny-a==1.0",),
    ("tiny-a==2.0",),
    ("tiny-a==1.0", "tiny-b"),
    ("tiny-a==2.0", "tiny-b"),
    ("tiny-a==2.0", "tiny-b", "setuptools"),
)
OVERRIDES = ((), ("tiny-a==1.0",), ("tiny-a==2.0", "tiny-b"))
SETTINGS = {"ENVD_WORKERS__IDLE_TIMEOUT": "0.5s", "ENVD_GC__INTERVAL": "5s"}
# How long a daemon lives, and how long after its successor is ready a client may find none:
# gRPC waits a second before it connects again.
LONG_LIFE_S = 60
LIFE_S = 8 if SECONDS < 2 * LONG_LIFE_S else LONG_LIFE_S + 10
RECONNECTING_S = 2.5
GROWN_BYTES, GROWN_FILES = 10 << 20, 30
# What somebody who changes environments may be told while others change them too.
REFUSALS = {
    "ENVIRONMENT_NOT_FOUND",
    "ENVIRONMENT_IN_USE",
    "ENVIRONMENT_PINNED",
    "BUILD_INTERRUPTED",
}


@dataclass(frozen=True)
class Taken:
    """What a process has: resident bytes, and open files."""

    size: int
    files: int


@dataclass
class Soak:
    """The load, and what came of it."""

    root: Path
    home: Path
    variables: dict[str, str]
    models: list[tuple[Path, str]]
    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    # When the daemon was not to be had, from and to.
    restarts: list[list[float]] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        until = time.monotonic() + SECONDS
        daemon = launch(self.root, self.home, **self.variables)
        load = [self.predict] * 4 + [self.build, self.collect, self.change, self.change, self.look]
        threads = [threading.Thread(target=self._always, args=(one,)) for one in load]
        for one in threads:
            one.start()
        try:
            while time.monotonic() < until:
                self._live(daemon, min(until, time.monotonic() + LIFE_S))
                daemon = self._restart(daemon)
        finally:
            self.stopping.set()
            for one in threads:
                one.join(120)
            stop(daemon)

    def _always(self, work: Callable[[Client, random.Random], None]) -> None:
        chance = random.Random(self.chance.random())
        with closing(Client(self.root / "predict.sock", timeout_s=100)) as client:
            while not self.stopping.is_set():
                began = time.monotonic()
                try:
                    work(client, chance)
                    self.counts[work.__name__] += 1
                except EnvdError as error:
                    self._failed(work.__name__, error, began)
                except Exception as error:  # noqa: BLE001
                    self.wrong.append(f"{work.__name__}: {error!r}")

    def _failed(self, work: str, error: EnvdError, began: float) -> None:
        # The one who restarts it may not have noted yet that it is over.
        is_restart = error.code is StatusCode.UNAVAILABLE and any(
            begin < time.monotonic() and began < end for begin, end in self.restarts
        )
        if is_restart:
            self.counts[f"{work} met a restart"] += 1
            time.sleep(0.05)
        elif work != "predict" and error.reason in REFUSALS:
            self.counts[f"{work}: {error.reason}"] += 1
        else:
            since_s = time.monotonic() - began
            self.wrong.append(f"{work} after {since_s:.1f} s: {error.reason} {error.message}")

    # What the threads do, over and over.

    def predict(self, client: Client, chance: random.Random) -> None:
        model, version = chance.choice(self.models)
        number = chance.random()
        answer = client.predict(model, [number])
        assert answer.predictions == [version, [number]]
        time.sleep(chance.choice([0, 0, 0.05, 0.8]))

    def build(self, client: Client, chance: random.Random) -> None:
        model, _ = chance.choice(self.models)
        found = client.build(model, pip_requirements_override=chance.choice(OVERRIDES))
        for _ in client.watch(found.id or found.spec_key, timeout_s=60):
            pass
        time.sleep(chance.random())

    def collect(self, client: Client, chance: random.Random) -> None:
        del chance
        client.purge(force=True, max_size_bytes=0)
        time.sleep(1)

    def change(self, client: Client, chance: random.Random) -> None:
        """Do something to one environment that others may be doing something to."""
        time.sleep(chance.random())
        found = [one.id for one in client.list()]
        if not found:
            return
        one = chance.choice(found)
        match chance.randrange(6):
            case 0:
                client.delete(one)
            case 1:
                client.delete(one, force=True)
            case 2:
                client.verify(one)
            case 3:
                client.verify(one, repair=True)
            case 4:
                client.get(one, full=True)
            case 5:
                client.pin(one)
                time.sleep(chance.random())
                client.unpin(one)

    def look(self, client: Client, chance: random.Random) -> None:
        list(client.list(show_all=True))
        time.sleep(chance.random() / 2)

    # The daemon.

    def _live(self, daemon: Daemon, until: float) -> None:
        """Let it live, and see what it takes meanwhile."""
        began = time.monotonic()
        taken: list[Taken] = []
        while time.monotonic() < until:
            taken.append(_taken(daemon.pid))
            time.sleep(0.5)
        if (lived_s := time.monotonic() - began) >= LONG_LIFE_S:
            self._compare(taken, lived_s)

    def _compare(self, taken: list[Taken], lived_s: float) -> None:
        """See that it takes no more at the end than once it was warm."""
        quarter = len(taken) // 4
        early, late = taken[quarter : 2 * quarter], taken[-quarter:]
        grown_bytes = _median(one.size for one in late) - _median(one.size for one in early)
        grown_files = _median(one.files for one in late) - _median(one.files for one in early)
        grown = f"{grown_bytes / 1e6:.1f} MB and {grown_files:.0f} files in {lived_s:.0f} s"
        print(f"the daemon has grown by {grown}")
        if grown_bytes > GROWN_BYTES or grown_files > GROWN_FILES:
            self.wrong.append(f"the daemon has grown by {grown}")

    def _restart(self, daemon: Daemon) -> Daemon:
        self.restarts.append([time.monotonic(), float("inf")])
        number = signal.SIGKILL if len(self.restarts) % 2 else signal.SIGTERM
        self.counts[f"daemons ended by {number.name}"] += 1
        daemon.process.send_signal(number)
        daemon.process.communicate(timeout=60)
        found = launch(self.root, self.home, **self.variables)
        self.restarts[-1][1] = time.monotonic() + RECONNECTING_S
        return found


def _taken(pid: int) -> Taken:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Taken(pages * os.sysconf("SC_PAGE_SIZE"), files)


def _median(values: Iterable[int]) -> float:
    return median(list(values))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 600)
def test_no_prediction_fails_but_for_a_restart(tiny: Tiny, tmp_path: Path, home: Path) -> None:
    models = [
        (tiny.model(tmp_path / f"model-{number}", *requirements), requirements[0][-3:])
        for number, requirements in enumerate(MODELS)
    ]
    seed = time.time_ns()
    soak = Soak(tmp_path / "root", home, tiny.settings | SETTINGS, models, random.Random(seed))

    soak.run()

    print(f"seed {seed}: {dict(sorted(soak.counts.items()))}")
    assert soak.wrong == []
    assert soak.counts["predict"] > SECONDS
    assert soak.counts["collect"] > SECONDS / 10
    with suppress(FileNotFoundError):
        assert not list((tmp_path / "root" / "scratch").iterdir())
