"""One daemon under mixed load, killed and restarted: no prediction fails but for a restart.

Models run fresh, forked and in batches, die, hang and are changed; their environments are
built, removed by force and collected. What the daemon that lives longest takes is printed.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import pytest
from envd_client import Client, EnvdError
from grpc import StatusCode

from tests.conftest import Daemon, launch, stop
from tests.taken import files_of, resident, slope, spawner_of
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
SETTINGS = {
    "ENVD_WORKERS__IDLE_TIMEOUT": "0.5s",
    "ENVD_WORKERS__STOP_GRACE": "0.5s",
    "ENVD_WORKERS__MAX_LOG": "100kB",
    "ENVD_GC__INTERVAL": "5s",
}
# How long a daemon lives while they are killed, which is a part of the time only where there is
# enough for the last one to show that it does not grow; and how long after its successor is
# ready a client may find none: gRPC waits a second before it connects again.
LIFE_S = 8
LONG_LIFE_S, LOOK_S = 90, 1
KILLING_S = SECONDS if SECONDS < 2 * LONG_LIFE_S else min(SECONDS / 4, 300)
RECONNECTING_S = 2.5
# Of the daemon and of its spawner: in an hour, and what is told in any time.
# What it takes is warm after half of its life; less than 25 minutes of the rest tell nothing.
HOUR_S, GROWN_BYTES_AN_HOUR, GROWN_FILES = 3600, 1_000_000, 30
TELLING_S = 1500
# What somebody who changes environments may be told while others change them too.
REFUSALS = {
    "ENVIRONMENT_NOT_FOUND",
    "ENVIRONMENT_IN_USE",
    "ENVIRONMENT_PINNED",
    "BUILD_INTERRUPTED",
}


BATCHED = "        return [[tiny_a.VERSION, row] for row in data]"
# Dies or hangs of what it is told to, prints all the while, and says who it is.
NASTY = """
        import os, time
        word, number = data
        print(word, number, "x" * 1000)
        if word == "die":
            os._exit(3)
        if word == "hang":
            time.sleep(600)
        return [NAME, number]
"""


@dataclass(frozen=True)
class Look:
    """What a process had at one moment: resident bytes, and open files."""

    at: float
    size: int
    files: int

    @classmethod
    def at_process(cls, pid: int) -> Look:
        return cls(time.monotonic(), resident(pid), files_of(pid))


@dataclass
class Soak:
    """The load, and what came of it."""

    root: Path
    home: Path
    variables: dict[str, str]
    models: list[tuple[Path, str]]
    nasty: list[Path]
    altered: Path
    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    # When the daemon was not to be had, from and to.
    restarts: list[list[float]] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        began = time.monotonic()
        daemon = launch(self.root, self.home, **self.variables)
        load = [self.predict] * 4 + [self.batch] * 2 + [self.die, self.hang, self.alter]
        load += [self.build, self.collect, self.change, self.change, self.look]
        threads = [threading.Thread(target=self._always, args=(one,)) for one in load]
        for one in threads:
            one.start()
        try:
            while time.monotonic() < began + KILLING_S:
                time.sleep(LIFE_S)
                daemon = self._restart(daemon)
            self._live(daemon, began + SECONDS)
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
        self.counts[answer.worker_origin] += 1
        time.sleep(chance.choice([0, 0, 0.05, 0.8]))

    def batch(self, client: Client, chance: random.Random) -> None:
        rows = [chance.randrange(1000) for _ in range(chance.randrange(1, 4))]
        assert client.predict("batched", rows).predictions == [["2.0", row] for row in rows]
        time.sleep(chance.choice([0, 0.02, 0.1]))

    def die(self, client: Client, chance: random.Random) -> None:
        model, number = chance.choice(self.nasty), chance.random()
        with pytest.raises(EnvdError) as raised:
            client.predict(model, ["die", number])
        if raised.value.reason != "WORKER_DIED":
            raise raised.value
        time.sleep(2 * chance.random())

    def hang(self, client: Client, chance: random.Random) -> None:
        model, number = chance.choice(self.nasty), chance.random()
        with pytest.raises(EnvdError) as raised:
            client.predict(model, ["hang", number], timeout_s=0.5)
        # Where it has died just before, it is not started again at once.
        if raised.value.reason not in {"DEADLINE_EXCEEDED", "WORKER_DIED"}:
            raise raised.value
        time.sleep(2 * chance.random())

    def alter(self, client: Client, chance: random.Random) -> None:
        """Change a model, and see that from then on it is the changed one that answers."""
        model, number = self.altered, chance.random()
        loader = model / "code" / "tiny_loader.py"
        _, rest = loader.read_text().split("\n", 1)
        new = model.with_name("new")
        new.write_text(f"NAME = {number}\n{rest}")
        new.replace(loader)
        assert client.predict(model, ["say", number]).predictions == [number, number]
        time.sleep(chance.random())

    def build(self, client: Client, chance: random.Random) -> None:
        model, _ = chance.choice(self.models)
        found = client.build(model, pip_requirements_override=chance.choice(OVERRIDES))
        for _ in client.watch(found.id or found.spec_key, timeout_s=60):
            pass
        time.sleep(chance.random())

    def collect(self, client: Client, chance: random.Random) -> None:
        del chance
        client.purge(force=True, max_size_bytes=0)
        time.sleep(2)

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
        pids = {"daemon": daemon.pid, "spawner": spawner_of(daemon.pid)}
        looks: dict[str, list[Look]] = {name: [] for name in pids}
        while time.monotonic() < until:
            for name, pid in pids.items():
                looks[name].append(Look.at_process(pid))
            time.sleep(LOOK_S)
        for name, taken in looks.items():
            if len(taken) * LOOK_S >= LONG_LIFE_S:
                self._compare(name, taken[len(taken) // 2 :])

    def _compare(self, name: str, taken: list[Look]) -> None:
        """See that it takes no more at the end than once it was warm."""
        times = [one.at for one in taken]
        grown = HOUR_S * slope([float(one.size) for one in taken], times)
        third = len(taken) // 3
        files = [median(one.files for one in part) for part in (taken[:third], taken[-third:])]
        lived_s = times[-1] - times[0]
        said = f"the {name} grows by {grown / 1e6:.2f} MB an hour, and from {files[0]:.0f} files "
        said += f"to {files[1]:.0f}; it has {taken[-1].size / 1e6:.1f} MB after {lived_s:.0f} s"
        print(said)
        is_larger = lived_s >= TELLING_S and grown > GROWN_BYTES_AN_HOUR
        if is_larger or files[1] - files[0] > GROWN_FILES:
            self.wrong.append(said)

    def _restart(self, daemon: Daemon) -> Daemon:
        self.restarts.append([time.monotonic(), float("inf")])
        number = signal.SIGKILL if len(self.restarts) % 2 else signal.SIGTERM
        self.counts[f"daemons ended by {number.name}"] += 1
        daemon.process.send_signal(number)
        daemon.process.communicate(timeout=60)
        found = launch(self.root, self.home, **self.variables)
        self.restarts[-1][1] = time.monotonic() + RECONNECTING_S
        return found


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 600)
def test_no_prediction_fails_but_for_a_restart(tiny: Tiny, tmp_path: Path, home: Path) -> None:
    # Three models of each environment: the second and third of one are forked.
    models = [
        (tiny.model(tmp_path / f"model-{number}-{copy}", *requirements), requirements[0][-3:])
        for number, requirements in enumerate(MODELS)
        for copy in range(3)
    ]
    nasty = [named(tiny, tmp_path / name) for name in ("nasty-a", "nasty-b")]
    settings = tmp_path / "envd.toml"
    batched = tiny.model(tmp_path / "batched", body=BATCHED)
    settings.write_text(f'[models.batched]\nuri = "{batched}"\nbatch = true\n')
    variables = tiny.settings | SETTINGS | {"ENVD_CONFIG": str(settings)}
    seed = time.time_ns()
    soak = Soak(
        tmp_path / "root",
        home,
        variables,
        models,
        nasty,
        named(tiny, tmp_path / "altered"),
        random.Random(seed),
    )

    soak.run()

    print(f"seed {seed}: {dict(sorted(soak.counts.items()))}")
    assert soak.wrong == []
    assert soak.counts["predict"] > SECONDS / 10
    assert soak.counts["collect"] > SECONDS / 100
    assert all(soak.counts[kind] for kind in ("fresh", "forked", "batch", "die", "hang", "alter"))
    with suppress(FileNotFoundError):
        assert not list((tmp_path / "root" / "scratch").iterdir())


def named(tiny: Tiny, path: Path) -> Path:
    """Write a model that says who it is, and dies or hangs if it is told to."""
    loader = tiny.model(path, body=NASTY) / "code" / "tiny_loader.py"
    loader.write_text(f"NAME = 0\n{loader.read_text()}")
    return path
