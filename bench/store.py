"""Measures the store with 10,000 environments in it: listing, gc's choice, a use, a restart.

The environments are made up but true to the format: a manifest of 94 packages, written as
envd writes it, the file of uses, a lock file each; one in a hundred is pinned, some are
leased. The limits are those of the project; `scandir` is what looking at as many
directories and files costs without knowing anything of them.

- list: every environment with sizes, last use, uses, models, leases and pins, checked
  against the directories. A daemon has listed before; the `first list` of a process
  begins with the file.
- rebuilt: the same once without the file, which has to be made.
- gc: which environments go, of those listed.
- use: recording one, mean of many.
- restart: a daemon with 1,000 environments, 20 half-built ones and 20 in the trash is killed;
  from its start to the line that says it serves.
- share: a real second environment of scikit-learn, pandas and numpy, with another version
  of one small package, against the disk that the first one took.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import rounds
from daemon import BIN, Daemon, environ
from rounds import Aim, Contender, Limit, Report
from setup import BENCH

from envd import durable
from envd.lock import Lock
from envd.lock.lock import Package
from envd.spec import Python
from envd.store import Base, Manifest, Store
from envd.store.gc import Disk, Limits, choose
from envd.store.sizes import Sizes

_MANY, _SOME, _UNREADY, _USES = 10_000, 1_000, 20, 2_000
_PACKAGES, _ARTIFACTS, _LEASED = 94, 4_000, 10
_DAY = 86_400
_ROUNDS = 5
_HOME = BENCH / "store"
_MODEL = {
    "MLmodel": "flavors:\n  python_function:\n    loader_module: loader\n    code: code\n"
    "    env:\n      virtualenv: python_env.yaml\n",
    "code/loader.py": "import numpy, pandas, six, sklearn\n",
    "python_env.yaml": "python: {python}\ndependencies:\n- -r requirements.txt\n",
    "requirements.txt": "numpy\npandas\nscikit-learn\nsix=={six}\n",
}
_SIXES = ("1.16.0", "1.17.0")
_AIMS = (Aim("list (ms)", "scandir (ms)", at_most=3),)


_LIMITS = (
    Limit("list (ms)", 150),
    Limit("gc (ms)", 500),
    Limit("use (us)", 20),
    Limit("restart (s)", 2),
    Limit("share (%)", 2),
)


class Made:
    """A root of made-up environments."""

    def __init__(self, root: Path, count: int) -> None:
        """Make *count* of them in *root*, if that has not been done before."""
        self.store = Store(root)
        # Others may have been made by an envd that wrote another format, or by another recipe.
        recipe = json.dumps(_document("", random.Random(0))) + Path(__file__).read_text()
        stamp = hashlib.sha256(recipe.encode()).hexdigest()
        marker = root.with_suffix(".made")
        if not marker.exists() or marker.read_text() != stamp:
            rounds.say(f"making {count} environments")
            shutil.rmtree(root, ignore_errors=True)
            self.store.create()
            self._make(count)
            marker.write_text(stamp)
            # What was changed just now is read again each time.
            time.sleep(0.05)
        self.ids = sorted(one.name for one in self.store.layout.environments.iterdir())

    def _make(self, count: int) -> None:
        chance, layout = random.Random(17), self.store.layout
        for name in ("environments", "held", "pins"):
            (layout.root / name).mkdir()
        for number in range(count):
            env_id = f"{chance.getrandbits(128):032x}"
            layout.used_by(env_id).mkdir(parents=True)
            document = _document(env_id, chance)
            # As `durable.write_checked` does; that would flush the disk 10,000 times.
            text = json.dumps(document | {"checksum": durable._checksum(document)}, indent=1)  # noqa: SLF001
            layout.manifest(env_id).write_text(text)
            programs = layout.environment(env_id) / str(document["attempt"]) / "bin"
            programs.mkdir(parents=True)
            (programs / "python").symlink_to(sys.executable)
            (layout.used_by(env_id) / "0123456789abcdef").write_text(f"/srv/models/{number}")
            layout.used(env_id).write_bytes(b"")
            os.truncate(layout.used(env_id), chance.randrange(1000))
            moment = time.time() - chance.randrange(200 * _DAY)
            os.utime(layout.used(env_id), (moment, moment))
            for held in (layout.leased(env_id), layout.building(env_id)):
                held.touch(mode=0o600)
            if number % 100 == 0:
                layout.pin(env_id).touch()

    @contextlib.contextmanager
    def leased(self) -> Iterator[None]:
        """Hold leases on some of them."""
        with contextlib.ExitStack() as stack:
            for env_id in self.ids[:: len(self.ids) // _LEASED]:
                file = stack.enter_context(self.store.layout.leased(env_id).open())
                fcntl.flock(file, fcntl.LOCK_SH)
            yield

    def half_build(self) -> None:
        """Leave behind what a killed daemon may leave."""
        layout = self.store.layout
        for number in range(_UNREADY):
            for folder in (layout.environments / f"{number:032x}" / "0123abcd", layout.trash):
                site = folder / f"{number}" / "lib" / "python3.11" / "site-packages"
                # What was in the trash may not be gone yet.
                site.mkdir(parents=True, exist_ok=True)
                for module in range(50):
                    (site / f"module_{module}.py").write_text("")


def _document(env_id: str, chance: random.Random) -> dict[str, object]:
    picked = sorted(chance.sample(range(_ARTIFACTS), _PACKAGES))
    digests = [hashlib.sha256(str(one).encode()).hexdigest() for one in picked]
    shares = tuple((sha256, 1000 * one) for sha256, one in zip(digests, picked, strict=True))
    own, base = chance.randrange(10**6), Path(sys.executable).resolve()
    made = Manifest(
        env_id=env_id,
        attempt=f"{chance.getrandbits(32):08x}",
        spec_key=f"{chance.getrandbits(256):064x}",
        manager="virtualenv",
        python=Python("cpython", "3.11.7", "cpython-311-x86_64-linux-gnu", "linux-x86_64", "glibc"),
        python_requested="3.11.7",
        base=Base(base, base.stat().st_mtime_ns),
        lock=Lock(tuple(map(_package, picked, digests))),
        notes=(),
        created=time.time() - chance.randrange(400 * _DAY) if env_id else 0.0,
        seconds=1.5,
        link_mode="hardlink",
        profile="dev",
        sizes=Sizes(own + sum(size for _, size in shares), own),
        shares=shares,
        files="0" * 64,
    )
    return made.document()


def _package(number: int, sha256: str) -> Package:
    name = f"package-{number}"
    return Package(name, "1.2.3", sha256, f"package_{number}-1.2.3-py3-none-any.whl")


class Lists:
    """What is measured over 10,000 environments."""

    def __init__(self, made: Made) -> None:
        self._store = made.store
        self._ids = made.ids
        self._records = self._store.records()

    def list(self) -> float:
        """List again."""
        return 1000 * rounds.seconds(self._store.records)

    def first(self) -> float:
        """List as a process that has just begun."""
        return 1000 * rounds.seconds(Store(self._store.layout.root).records)

    def rebuilt(self) -> float:
        """List without an index."""
        self._store.layout.index.unlink()
        return self.first()

    def scandir(self) -> float:
        """Look at as many directories and files as a list does, and do nothing with them."""
        return 1000 * rounds.seconds(self._scandir)

    def _scandir(self) -> None:
        for entry in os.scandir(self._store.layout.environments):
            entry.stat()
            os.stat(f"{entry.path}/used")  # noqa: PTH116

    def gc(self) -> float:
        """Choose who goes: some for their age, some for room."""
        now = time.time()
        total = sum(one.own for one in self._records)
        limits = Limits(
            unused_s=150 * _DAY, max_bytes=total // 2, min_free=total, keep=100, grace_s=3600
        )
        disk = Disk(free=0, other=total // 10)
        return 1000 * rounds.seconds(lambda: choose(self._records, limits, disk, now))

    def use(self) -> float:
        """Record uses of some environments."""

        def record() -> None:
            for env_id in self._ids[:_USES]:
                self._store.uses.record(env_id)

        return 1e6 * rounds.seconds(record) / _USES


class Restarts:
    """A daemon that is killed again and again."""

    def __init__(self, made: Made) -> None:
        self._made = made
        self._daemon = Daemon(made.store.layout.root)

    def measure(self) -> float:
        """Kill the daemon, and start another on what it leaves."""
        self._daemon.kill()
        self._made.half_build()

        def start() -> None:
            self._daemon = Daemon(self._made.store.layout.root)

        return rounds.seconds(start)

    def stop(self) -> None:
        """End it."""
        self._daemon.stop()


def _share() -> float:
    """Build two environments that differ in one package; return what the second adds in %."""
    root = _HOME / "real"
    shutil.rmtree(root, ignore_errors=True)
    taken = [0, *(_build(root, version) for version in _SIXES)]
    rounds.say(f"share: {taken[1]} bytes of disk, then {taken[2] - taken[1]} more")
    return 100 * (taken[2] - taken[1]) / taken[1]


def _build(root: Path, version: str) -> int:
    model = _HOME / "models" / version
    shutil.rmtree(model, ignore_errors=True)
    (model / "code").mkdir(parents=True)
    python = "{}.{}.{}".format(*sys.version_info)
    for name, text in _MODEL.items():
        (model / name).write_text(text.format(python=python, six=version))
    rounds.run([BIN / "envctl", "build", model], environ(root))
    return _taken(root)


def _taken(root: Path) -> int:
    """Return what *root* takes of the disk, each inode once."""
    inodes = {}
    for folder, _, names in os.walk(root):
        for path in (folder, *(f"{folder}/{name}" for name in names)):
            status = os.lstat(path)
            inodes[status.st_ino] = 512 * status.st_blocks
    return sum(inodes.values())


@click.command()
@rounds.options
def main(rounds_: int, *, is_json: bool, quick: bool) -> None:
    """Measure the store with many environments in it."""
    with rounds.failing_briefly(), contextlib.ExitStack() as stack:
        many, some = Made(_HOME / "many", _MANY), Made(_HOME / "some", _SOME)
        stack.enter_context(many.leased())
        lists, restarts = Lists(many), Restarts(some)
        stack.callback(restarts.stop)
        before = rounds.load()
        taken = rounds.alternate(
            [
                Contender("list (ms)", lists.list),
                Contender("scandir (ms)", lists.scandir),
                Contender("first list (ms)", lists.first),
                Contender("gc (ms)", lists.gc),
                Contender("use (us)", lists.use),
                Contender("restart (s)", restarts.measure),
                Contender("rebuilt (ms)", lists.rebuilt, last=1),
                Contender("share (%)", _share, last=1),
            ],
            3 if quick else max(rounds_, _ROUNDS),
        )
    conditions = {one.of: one.text(taken) for one in _LIMITS} | {
        "load average": f"{before} at the start, {rounds.load()} at the end",
        "environments": f"{_MANY}, {_SOME} where a daemon restarts; {_PACKAGES} packages each",
        "index": f"{many.store.layout.index.stat().st_size} bytes",
        **rounds.machine(BENCH),
    }
    subject = f"A store of {_MANY} environments"
    report = Report("store", subject, "unit in brackets", taken, _AIMS, conditions)
    rounds.show(report, is_json=is_json)


if __name__ == "__main__":
    main()
