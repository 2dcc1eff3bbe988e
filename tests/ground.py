"""A daemon with a nasty model and a steady one, and what the one costs the other."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from envd_client import Client
from envd_client.errors import EnvdError

from tests import deeds
from tests.conftest import Daemon, wait_for
from tests.steady import Answers, Steady
from tests.taken import Taken, resident, slope
from tests.tiny import Tiny

MANY = 20
QUIET_S = 5
GROWN_BYTES = 20_000
_BODY = """
        import deeds
        return deeds.do(data)

    def predict_stream(self, data):
        import deeds
        yield from deeds.stream(data)
"""


@dataclass(frozen=True)
class Ground:
    """A daemon with a model that is steadily asked, and a nasty one, forked and not."""

    daemon: Daemon
    client: Client
    steady: Steady
    models: dict[str, Path]

    @classmethod
    def on(cls, daemon: Daemon, client: Client, tiny: Tiny, folder: Path) -> Ground:
        """Have the models loaded."""
        calm = tiny.model(folder / "steady", "tiny-a==2.0", body="        return data")
        # The first model of an environment of its own, and the second one of another.
        models = {
            "fresh": _nasty(tiny, folder / "fresh", "tiny-a==1.0"),
            "forked": _nasty(tiny, folder / "forked", "tiny-a==2.0"),
        }
        client.predict(calm, [0])
        for kind, one in models.items():
            assert client.predict(one, ["say", 0]).worker_origin == kind
        steady = Steady.on(daemon.root / "predict.sock", calm, folder / "steady.txt")
        return cls(daemon, client, steady, models)

    def pid(self, kind: str) -> int:
        """Have a worker of the nasty model, and return its pid."""
        answer = self.client.predict(self.models[kind], ["say", 1])
        pid: int = answer.predictions[0]
        return pid

    def ask(self, kind: str, *asked: object, timeout_s: float = 60) -> object:
        """Return what the nasty model answers, or how it failed."""
        try:
            answer = self.client.predict(self.models[kind], [*asked], timeout_s=timeout_s)
        except EnvdError as error:
            return error
        return answer.predictions

    def stream(self, kind: str, *asked: object) -> tuple[list[object], str]:
        """Return what the nasty model yields, and why it did not go on."""
        items: list[object] = []
        try:
            for item in self.client.predict_stream(self.models[kind], [*asked]):
                items.append(item)  # noqa: PERF402
        except EnvdError as error:
            return items, error.reason
        return items, ""

    def hang(self, kind: str, is_over: Callable[[], bool], *asked: object) -> None:
        """Have the nasty model hang until its caller leaves, and see what becomes of that.

        On a busy machine a caller may have left before its request was begun.
        """
        for _ in range(10):
            hung = self.ask(kind, *asked, timeout_s=0.15)
            assert isinstance(hung, EnvdError)
            assert hung.reason == "DEADLINE_EXCEEDED"
            with contextlib.suppress(AssertionError):
                wait_for(is_over, 3)
                return
        message = f"{asked} goes on with nobody waiting for it"
        raise AssertionError(message)

    @contextlib.contextmanager
    def unharmed(self, times: int, most: int = 5) -> Iterator[Callable[[], None]]:
        """See that what is done so many *times* harms nobody else.

        The function is to be called after each. How long others waited, at *most* so many
        times what they do else, and whether the daemon grew, can only be told of many.
        """
        before, sizes = self._settled(), []
        quiet = [self._quiet()] if times >= MANY else []
        begun = time.monotonic()
        yield lambda: sizes.append(self._size() if times >= MANY else 0)
        meanwhile = self.steady.since(begun)
        wait_for(lambda: self._settled() == before, 20)
        assert meanwhile.seconds
        assert meanwhile.errors == []
        if times >= MANY:
            quiet.append(self._quiet())
            late, grown = _p99(meanwhile), slope(sizes[times // 2 :])
            print(f"p99 {late * 1e3:.1f} ms, when nothing else is done", end=" ")
            print(*(f"{one * 1e3:.1f}" for one in quiet), f"and {grown:.0f} bytes each time")
            assert late <= most * max(quiet)
            assert grown < GROWN_BYTES

    def _settled(self) -> Taken:
        for kind in self.models:
            self.pid(kind)
        return Taken.by(self.daemon.pid)

    def _size(self) -> int:
        """Return what the daemon has without what it may just be copying."""
        sizes = []
        for _ in range(5):
            sizes.append(resident(self.daemon.pid))
            time.sleep(0.01)
        return min(sizes)

    def _quiet(self) -> float:
        """Return the p99 of the steady model when nothing else happens."""
        begun = time.monotonic()
        time.sleep(QUIET_S)
        return _p99(self.steady.since(begun))


def _p99(answers: Answers) -> float:
    return statistics.quantiles(answers.seconds, n=100)[-1]


def _nasty(tiny: Tiny, path: Path, *requirements: str) -> Path:
    """Write a model that does what it is asked."""
    tiny.model(path, *requirements, body=_BODY)
    shutil.copy(deeds.__file__, path / "code" / "deeds.py")
    return path
