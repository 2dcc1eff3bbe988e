"""A builder that takes milliseconds: some twenty files, through all of the real store."""

from __future__ import annotations

import functools
import hashlib
import os
import py_compile
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from envd.build.bytecode import Bytecode
from envd.config import Settings
from envd.environments.installing import Installer
from envd.events import ignore
from envd.lock import Lock, Package
from envd.spec import Python
from envd.store import Base, Environment, Manifest, Store, contents, sweep, trash

PYTHON = Python(
    implementation="cpython",
    version="{}.{}.{}".format(*sys.version_info),
    abi=f"{sys.implementation.cache_tag}-x86_64-linux-gnu",
    platform="linux-x86_64",
    libc="glibc",
)
_SITE = Path("lib/python{}.{}/site-packages".format(*sys.version_info))
# Bytecode says what source it is of by its time.
_DATE = 1_700_000_000
_MODULES = 3


class Fake:
    """A root whose environments are numbers: each has a package of its own, and one of all."""

    def __init__(self, root: Path) -> None:
        self.settings = Settings(root)
        self.store = Store(root)
        self.base = root / "pythons" / "python"

    def create(self) -> None:
        """Make the root, and the interpreter that all environments are built on."""
        self.store.create()
        self.base.parent.mkdir(exist_ok=True)
        self.base.touch()

    def build(self, number: int) -> Environment:
        """Return the environment *number*, building it if it is not ready."""
        lock, started = _lock(number), time.monotonic()
        log = self.store.layout.log(spec_key(number))
        with self.store.building(env_id(number), log, lambda _: None) as attempt:
            if found := self.store.find(env_id(number)):
                return found
            self._fill(attempt.prefix, lock)
            manifest = self._manifest(number, lock)
            return Installer(self.settings, self.store).publish(manifest, attempt, started, ignore)

    def change_base(self) -> None:
        """Make the interpreter another: no environment is ready any more."""
        os.utime(self.base, ns=(time.time_ns(), time.time_ns()))

    def _fill(self, prefix: Path, lock: Lock) -> None:
        bytecode = Bytecode(self.store.layout.downloads / "bytecode", PYTHON, "hardlink")
        (prefix / "bin").mkdir(parents=True)
        (prefix / "bin" / "python").symlink_to(self.base)
        (prefix / _SITE).mkdir(parents=True)
        placed = bytecode.place(lock.packages, prefix)
        for path, text in _files(lock):
            (prefix / path).parent.mkdir(exist_ok=True)
            (prefix / path).write_text(text)
            os.utime(prefix / path, (_DATE, _DATE))
        if fresh := bytecode.fresh(lock.packages, placed):
            scratch = self.store.scratch()
            try:
                for path in sorted(prefix.glob(f"{_SITE}/*/*.py")):
                    py_compile.compile(str(path))
                bytecode.keep(fresh, prefix, scratch.path)
            finally:
                scratch.remove()

    def _manifest(self, number: int, lock: Lock) -> Manifest:
        return Manifest(
            env_id=env_id(number),
            attempt="",
            spec_key=spec_key(number),
            manager="virtualenv",
            python=PYTHON,
            python_requested=None,
            base=Base(self.base, self.base.stat().st_mtime_ns),
            lock=lock,
            notes=(),
            created=0.0,
            seconds=0.0,
            link_mode="hardlink",
            profile="dev",
        )


@functools.cache
def env_id(number: int) -> str:
    return _lock(number).env_id(PYTHON)


def spec_key(number: int) -> str:
    return hashlib.sha256(f"spec {number}".encode()).hexdigest()


def check(store: Store, name: str) -> list[str]:
    """Return what is wrong with the environment *name*, if it is ready."""
    found = store.find(name)
    return faults(store, found) if found else []


def faults(store: Store, found: Environment) -> list[str]:
    """Return what *found* lacks of what its lock says, and how it differs from its record."""
    wrong = [
        f"{found.prefix / path} is not what was built"
        for path, text in _files(found.manifest.lock)
        if not (found.prefix / path).exists() or (found.prefix / path).read_text() != text
    ]
    record = store.layout.files(found.id, found.manifest.attempt)
    return wrong + [
        f"{found.prefix}: {one.path}: {one.detail}"
        for one in contents.faults(found.prefix, record, found.manifest.files)
    ]


def tidy(store: Store) -> None:
    """Clear away what the dead left, as the daemon does when it starts."""
    sweep.leftovers(store)
    sweep.superseded(store)
    trash.empty(store.layout.trash)


def remains(store: Store) -> list[str]:
    """Return what lies below the root though nobody needs it any more."""
    layout = store.layout
    left = [*layout.trash.glob("*"), *layout.scratch.glob("*"), *_unfinished(layout.root)]
    for home in layout.environments.glob("*"):
        found = store.read(home.name)
        attempt = found.manifest.attempt if found else ""
        kept = {"ready.json", "used", "used-by", attempt, f"{attempt}.files"} if found else set()
        left += [one for one in [home, *home.glob("*")] if not found or one.name not in kept]
        left = [one for one in left if one != home or not found]
    return sorted({str(one) for one in left} | set(store.holders().working()))


def _unfinished(root: Path) -> Iterator[Path]:
    """Yield the files that were to take the place of others."""
    places = [root, *(root / name for name in ("failures", "pins", "pythons", "cache/digests"))]
    places += [*root.glob("specs/*"), *root.glob("wheels/*"), *root.glob("models/*")]
    places += [*root.glob("environments/*"), *root.glob("environments/*/used-by")]
    for place in places:
        yield from (one for one in place.glob(".*") if one.is_file())


@functools.cache
def _lock(number: int) -> Lock:
    return Lock((_package("fake-all", "1.0"), _package("fake-own", f"{number}.0")))


def _package(name: str, version: str) -> Package:
    sha256 = hashlib.sha256(f"{name} {version}".encode()).hexdigest()
    return Package(name, version, sha256, f"{name}-{version}-py3-none-any.whl")


def _files(lock: Lock) -> Iterator[tuple[Path, str]]:
    yield Path("pyvenv.cfg"), "home = /nowhere\n"
    for one in lock.packages:
        folder, info = one.name.replace("-", "_"), f"{one.name.replace('-', '_')}-{one.version}"
        names = [f"{folder}/m{count}.py" for count in range(_MODULES)]
        for name in names:
            yield _SITE / name, f"VERSION = {one.version!r}\nNAME = {name!r}\n"
        yield _SITE / f"{info}.dist-info" / "METADATA", f"Name: {one.name}\n"
        record = "".join(f"{name},,\n" for name in names)
        yield _SITE / f"{info}.dist-info" / "RECORD", record
