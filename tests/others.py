"""Other processes at work in a root, and environments that take milliseconds to build.

Everything of the store and of `Environments` is real; only what fills an attempt is not uv.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from envd.config import Settings
from envd.environments.asked import Asked
from envd.environments.environments import Environments
from envd.environments.installing import Content, Filled, Installer
from envd.environments.verifying import Verifier
from envd.errors import EnvdError, InstallFailedError
from envd.events import Event, OnEvent, Stage
from envd.lock import Lock
from envd.lock.lock import Package
from envd.lock.uv import Uv
from envd.settings.sections import Build, Gc
from envd.settings.values import Bytes, Share
from envd.spec import Python
from envd.spec.spec import Indexes, Spec
from envd.store import Attempt, Base, Environment, Store, collecting, forgetting, removal
from envd.store.collecting import Collected, Criteria

_PYTHON = Python("cpython", "3.11.9", "cp311", "linux_x86_64", "glibc-2.36")
_FILES = 4
_END_S = 20


@dataclass(frozen=True)
class Fake:
    """An environment called *name*: a handful of files that say whose they are."""

    name: str
    root: Path

    @property
    def lock(self) -> Lock:
        digest = hashlib.sha256(self.name.encode()).hexdigest()
        return Lock((Package(self.name, "1.0", digest, f"{self.name}-1.0-py3-none-any.whl"),))

    @property
    def id(self) -> str:
        return self.lock.env_id(_PYTHON)

    @property
    def base(self) -> Path:
        """Its interpreter."""
        return self.root.parent / f"python-of-{self.name}"

    @property
    def spec(self) -> Spec:
        return Spec(
            manager="virtualenv", python=_PYTHON, build=(), requirements=(), constraints=(),
            build_constraints=(self.name,), bounds=(), indexes=Indexes(), only_binary=(),
            no_binary=(), prereleases=False, as_of="", closed=True,
        )  # fmt: skip

    @property
    def asked(self) -> Asked:
        """What a model asks for that needs it; it is locked already."""
        if not self.base.exists():
            self.base.write_text("#!")
        store = Store(self.root)
        # As whoever works on a root does first: it is closed to others.
        store.create()
        specs = store.specs
        if specs.lock(self.spec.key) is None:
            specs.keep(self.spec)
            specs.keep_lock(self.spec.key, self.lock)
        return Asked(self.spec, None, self.base, (), (), self.root.parent, None)

    def fill(self, prefix: Path) -> None:
        (prefix / "bin").mkdir(parents=True)
        (prefix / "bin" / "python").symlink_to(self.base)
        for number in range(_FILES):
            (prefix / f"{number}.py").write_text(self._text(number))

    def read(self, prefix: Path) -> None:
        """See that every file is there and whole."""
        for number in range(_FILES):
            assert (prefix / f"{number}.py").read_text() == self._text(number)

    def break_interpreter(self) -> None:
        found = self.base.stat()
        os.utime(self.base, ns=(found.st_atime_ns, found.st_mtime_ns + 1_000_000_000))

    def build(self) -> Environment:
        """Return it, built if it is missing."""
        return environments(self).ready(self.asked).environment

    def _text(self, number: int) -> str:
        return f"{self.id} {number}\n" * 100


def environments(fake: Fake, meanwhile: Callable[[], None] = lambda: None) -> Environments:
    """Return those of the root of *fake*, who do *meanwhile* when an attempt is half full."""
    # Nothing is left for a disk that others fill.
    settings = Settings(fake.root, build=Build(reserve=Bytes(0)))
    found = Environments(settings)
    found._installer = Filler(settings, found.store, fake, meanwhile)
    return found


class Filler(Installer):
    """Fills attempts by itself, and publishes them as any installer."""

    def __init__(
        self, settings: Settings, store: Store, fake: Fake, meanwhile: Callable[[], None]
    ) -> None:
        super().__init__(settings, store)
        self._fake, self._meanwhile = fake, meanwhile

    def install(self, content: Content, attempt: Attempt, uv: Uv, on_event: OnEvent) -> Filled:
        del content, uv, on_event
        base = Base.of(self._fake.base)
        self._fake.fill(attempt.prefix)
        self._meanwhile()
        return Filled(base, (), ())


class Left(Exception):  # noqa: N818
    """The test does not need this process any more."""


class Link:
    """What a process of `Others` says to its test, and hears from it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last: object = None

    def say(self, what: object) -> None:
        self._connection.send(what)

    def say_once(self, what: object) -> None:
        """Say it unless it was the last that was said so."""
        if self._last != what:
            self._last = what
            self.say(what)

    def hear(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError as error:
            raise Left from error

    @property
    def is_told(self) -> bool:
        """Whether the test has said anything, or gone."""
        return self._connection.poll()


class Other:
    """A process that runs one function."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.pid: int = connection.recv()
        # Its number may soon be another's, where many are started.
        self._process: int | None = None
        with contextlib.suppress(ProcessLookupError):
            self._process = os.pidfd_open(self.pid)

    def hear(self, limit_s: float = _END_S) -> Any:
        """Return the next thing it says."""
        assert self._connection.poll(limit_s), "it says nothing"
        return self._connection.recv()

    def say(self, what: object) -> None:
        self._connection.send(what)

    def says_nothing(self, for_s: float = 0.1) -> bool:
        return not self._connection.poll(for_s)

    def terminate(self) -> None:
        self._end_by(signal.SIGTERM)

    def kill(self) -> None:
        self._end_by(signal.SIGKILL)

    def end(self) -> None:
        """Let it go, and wait until it has."""
        self._connection.close()
        self._gone()

    def _end_by(self, number: int) -> None:
        if self._process is not None:
            signal.pidfd_send_signal(self._process, number)
        self._gone()

    def _gone(self) -> None:
        if self._process is None:
            return
        poll = select.poll()
        poll.register(self._process, select.POLLIN)
        assert poll.poll(1000 * _END_S), f"{self.pid} does not end"
        os.close(self._process)
        self._process = None


class Others:
    """Starts processes in a few milliseconds each."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._started: list[Other] = []

    def start(self, function: Callable[..., None], *arguments: object) -> Other:
        """Run *function*, of a module that `tests.others` loads, with a Link and *arguments*."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [b"."], [theirs.fileno()])
        connection = Connection(ours.detach())
        connection.send((function.__name__, arguments))
        self._started.append(Other(connection))
        return self._started[-1]

    def close(self) -> None:
        for one in self._started:
            one._connection.close()
        for one in self._started:
            one._gone()


@contextmanager
def others() -> Iterator[Others]:
    """Load what the processes need, once."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        program = f"from tests import others; others.main({theirs.fileno()})"
        argv, where = [sys.executable, "-c", program], Path(__file__).parents[1]
        with subprocess.Popen(argv, cwd=where, pass_fds=[theirs.fileno()]) as process:
            theirs.close()
            found = Others(ours)
            try:
                yield found
                found.close()
            finally:
                ours.close()
                process.wait(_END_S)


def main(descriptor: int) -> None:
    """Fork a process for every socket that comes over *descriptor*."""
    control = socket.socket(fileno=descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while received := socket.recv_fds(control, 1, 1)[1]:
        if os.fork() == 0:
            control.close()
            _run(Connection(received[0]))
        os.close(received[0])


def _run(connection: Connection) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # As envctl and the daemon's builder: what was begun is cleared away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    connection.send(os.getpid())
    name, arguments = connection.recv()
    try:
        globals()[name](Link(connection), *arguments)
    except (Left, BrokenPipeError):
        os._exit(0)
    sys.exit(0)


# What the processes do.


def hold(link: Link, root: Path, env_id: str) -> None:
    """Hold a lease until the end; say whether it could be had."""
    found = Store(root).lease(env_id)
    link.say(found is not None)
    link.hear()


def build(link: Link, fake: Fake, *, retry: bool = False) -> None:
    """Ask for *fake*: say "building", and end as the test says; "waiting"; or how it went."""

    def meanwhile() -> None:
        link.say_once("building")
        if link.hear() == "fail":
            message = "it was told to fail"
            raise InstallFailedError(message)

    def on_event(event: Event) -> None:
        if isinstance(event, Stage) and event.name == "waiting":
            link.say_once("waiting")

    try:
        found = environments(fake, meanwhile).ready(fake.asked, on_event, retry=retry)
    except EnvdError as error:
        link.say(error.reason)
    else:
        link.say("found" if found.cached else "built")


def rebuild(link: Link, fake: Fake) -> None:
    """Build *fake* anew beside what is there, as a repair does; and end as the test says."""
    found = environments(fake)
    installer, store = found._installer, found.store
    ready = store.find(fake.id)
    assert ready is not None
    with store.building(fake.id, store.layout.log(fake.spec.key), lambda _: None) as attempt:
        fake.fill(attempt.prefix)
        link.say("building")
        if link.hear() == "publish":
            installer.publish(ready.manifest, attempt, time.monotonic(), lambda _: None)
    link.say("done")


def repair(link: Link, settings: Settings, env_id: str) -> None:
    """Verify *env_id* and repair it: say every stage, and what comes of it."""

    def on_event(event: Event) -> None:
        if isinstance(event, Stage):
            link.say_once(event.name)

    try:
        link.say(Verifier(settings, Store(settings.root)).verify(env_id, on_event, repair=True))
    except EnvdError as error:
        link.say(error)


def lock(link: Link, fake: Fake) -> None:
    """Hold the spec of *fake* until the test says whether to lock it "anew"."""
    store = Store(fake.root)
    with store.locking(fake.spec.key, lambda _: None):
        link.say("locking")
        if link.hear() == "anew":
            store.specs.keep(fake.spec)
    link.say("done")


def forget(link: Link, root: Path, unused_s: float) -> None:
    """Drop the specs that were made *unused_s* ago or earlier."""
    forgetting.specs(Store(root), unused_s)
    link.say("done")


def force(link: Link, root: Path, env_id: str) -> None:
    """Remove an environment by force: say "waiting", where it has to; and when it is gone."""

    def wait() -> None:
        link.say_once("waiting")
        time.sleep(0.002)

    removal.by_force(Store(root), env_id, wait)
    link.say("gone")


def use_all(link: Link, fakes: Sequence[Fake], until: float, at_least: int) -> None:
    """Build, lease, read and use every environment over and over, *at_least* so often.

    Say how many leases there were, how often it was gone before it could be leased, and
    what went wrong.
    """
    leases, missed, wrong = 0, 0, []
    while time.monotonic() < until or leases < at_least:
        for fake in fakes:
            found = environments(fake)
            environment = found.ready(fake.asked).environment
            leased = found.store.lease(environment.id)
            if leased is None:
                missed += 1
                continue
            leases += 1
            try:
                fake.read(leased[0].prefix)
                time.sleep(0.001)
                fake.read(leased[0].prefix)
                found.store.uses.record(fake.id)
            except OSError as error:
                wrong.append(str(error))
            finally:
                leased[1].close()
    link.say((leases, missed, wrong))


def collect_all(link: Link, root: Path) -> None:
    """Let gc take everything over and over, until it is told to say how much it took."""
    taken = 0
    while not link.is_told:
        taken += len(gone(collect(Store(root), max_size=0)))
    link.say(taken)


def collect(store: Store, **limits: Any) -> Collected:
    """Collect within *limits*; no downloads, and no age, limit it besides."""
    return collecting.collect(store, Gc(min_free=Share("0%")), Criteria(force=True, **limits))


def gone(collected: Collected) -> Collection[str]:
    return {one.id for one in collected.verdicts if one.goes}
