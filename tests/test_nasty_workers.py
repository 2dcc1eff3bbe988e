"""Workers that die, hang, flood and forge, and what that costs whoever has another model.

All the while that other model is asked twenty times a second: it has no error, and in the
end the daemon and its spawner have no more than before, and no process is left.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from envd_client import requests
from envd_client.errors import EnvdError

from tests.conftest import is_running, launch, one_python, stop, wait_for
from tests.ground import Ground
from tests.tiny import Tiny

LIMIT = 64 << 20
# Of a message, besides what the model answered.
ROOM = 4096
OFTEN = pytest.mark.parametrize("times", [2, pytest.param(100, marks=pytest.mark.slow)])
KINDS = pytest.mark.parametrize("kind", ["fresh", "forked"])


@pytest.fixture(scope="module")
def start_ground(
    tmp_path_factory: pytest.TempPathFactory, home: Path, tiny: Tiny, tools: Path
) -> Iterator[Callable[..., Ground]]:
    """Start daemons with models, which end with the module."""
    with contextlib.ExitStack() as stack:

        def start(**more: str) -> Ground:
            folder = tmp_path_factory.mktemp("nasty")
            settings = tiny.settings | one_python(tools) | {"ENVD_WORKERS__STOP_GRACE": "0.1s"}
            daemon = launch(folder / "root", home, **settings | more)
            stack.callback(stop, daemon)
            client = stack.enter_context(daemon.client(max_message_bytes=300 << 20))
            ground = Ground.on(daemon, client, tiny, folder)
            stack.callback(ground.steady.stop)
            return ground

        yield start


@pytest.fixture(scope="module")
def ground(start_ground: Callable[..., Ground]) -> Ground:
    return start_ground()


@dataclass(frozen=True)
class Cgroup:
    """A control group with a limit."""

    folder: Path

    def add(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(f"{pid}")

    @property
    def pids(self) -> list[int]:
        return [int(one) for one in (self.folder / "cgroup.procs").read_text().split()]


@pytest.fixture
def cgroup() -> Iterator[Callable[..., Cgroup]]:
    """Make control groups, where that may be done: of version 1, or else of version 2."""
    with contextlib.ExitStack() as stack:

        def make(controller: str, limits: dict[str, int]) -> Cgroup:
            homes = [Path("/sys/fs/cgroup", controller), Path("/sys/fs/cgroup")]
            folder = next(one for one in homes if one.exists()) / f"envd-test-{os.getpid()}"
            try:
                folder.mkdir()
                stack.callback(folder.rmdir)
                known = [name for name in limits if (folder / name).exists()]
                (folder / known[0]).write_text(f"{limits[known[0]]}")
            except (OSError, IndexError) as error:
                pytest.skip(f"no control group may be made here: {error!r}")
            return Cgroup(folder)

        yield make


# The matrix.


@OFTEN
@KINDS
@pytest.mark.parametrize(
    ("deed", "cause"),
    [("segfault", "SIGSEGV"), ("leave", "exit 7"), ("hang_up", "SIGKILL")],
)
def test_who_dies_costs_its_own_request(
    ground: Ground, kind: str, deed: str, cause: str, times: int
) -> None:
    with ground.unharmed(times) as done:
        for number in range(times):
            pid = ground.pid(kind)
            died = ground.ask(kind, deed, f"{times} {number}")
            assert isinstance(died, EnvdError)
            assert (died.reason, died.metadata["cause"]) == ("WORKER_DIED", cause)
            assert not is_running(pid)
            done()


@OFTEN
@KINDS
def test_who_takes_more_memory_than_there_is_costs_its_own_request(
    ground: Ground, kind: str, times: int, cgroup: Callable[..., Cgroup]
) -> None:
    group = cgroup("memory", {"memory.limit_in_bytes": 64 << 20, "memory.max": 64 << 20})
    with ground.unharmed(times) as done:
        for number in range(times):
            pid = ground.pid(kind)
            group.add(pid)
            died = ground.ask(kind, "take_memory", f"{times} {number}")
            assert isinstance(died, EnvdError)
            assert (died.reason, died.metadata["cause"]) == ("WORKER_DIED", "SIGKILL")
            done()


@OFTEN
@KINDS
@pytest.mark.parametrize("deed", ["compute", "wait", "freeze", "say_half"])
def test_who_hangs_is_replaced_when_nobody_waits_any_more(
    ground: Ground, kind: str, deed: str, times: int
) -> None:
    with ground.unharmed(times) as done:
        for number in range(times):
            pid = ground.pid(kind)
            ground.hang(kind, lambda: not is_running(pid), deed, f"{times} {number}")  # noqa: B023
            done()


@OFTEN
@KINDS
def test_a_fork_bomb_goes_with_its_worker(
    ground: Ground, kind: str, times: int, cgroup: Callable[..., Cgroup]
) -> None:
    group = cgroup("pids", {"pids.max": 40})
    with ground.unharmed(times) as done:
        for number in range(times):
            group.add(ground.pid(kind))
            ground.hang(kind, lambda: not group.pids, "bomb", 20, f"{times} {number}")
            done()


@OFTEN
@KINDS
@pytest.mark.parametrize("then", ["leave", "stay"])
def test_what_a_worker_leaves_in_other_sessions_goes_with_it(
    ground: Ground, kind: str, then: str, times: int, tmp_path: Path
) -> None:
    with ground.unharmed(times) as done:
        for number in range(times):
            ground.pid(kind)
            said = tmp_path / f"{number}"
            given = ground.ask(kind, "litter", 3, str(said), then, f"{times} {number}")
            left = [int(one) for one in said.read_text().split()]
            assert len(left) == 6
            if then == "stay":
                assert given == "littered"
                assert all(map(is_running, left))
                ground.ask(kind, "leave", f"{times} {number} {then}")
            else:
                assert getattr(given, "reason", given) == "WORKER_DIED"
            wait_for(lambda: not any(map(is_running, left)), 20)  # noqa: B023
            done()


@OFTEN
@KINDS
@pytest.mark.parametrize(
    ("deed", "answer"),
    [
        ("flood", "answered"),
        ("forge", "answered"),
        ("take_addresses", "MODEL_RAISED"),
        ("give_deep", "MODEL_RAISED"),
        ("raise_silently", "MODEL_RAISED"),
    ],
)
def test_what_a_worker_survives_costs_nothing(
    ground: Ground, kind: str, deed: str, answer: str, times: int
) -> None:
    with ground.unharmed(times) as done:
        pid = ground.pid(kind)
        for number in range(times):
            given = ground.ask(kind, deed, number)
            assert getattr(given, "reason", given) == answer
            done()
        assert ground.pid(kind) == pid


# What is said over the socket of the protocol: there the kinds are alike.


@OFTEN
@pytest.mark.parametrize(
    "word", ["unasked", "batch", "kind", "size", "deep", "noise", "part", "part unasked"]
)
def test_who_says_what_no_worker_says_is_ended(ground: Ground, word: str, times: int) -> None:
    with ground.unharmed(times) as done:
        for number in range(times):
            pid = ground.pid("forked")
            given = ground.ask("forked", "speak", word, f"{times} {number}")
            assert isinstance(given, EnvdError)
            assert given.reason == "WORKER_DIED"
            assert not is_running(pid)
            done()


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("DONE", "[]"),
        ("DONE", "{}"),
        ("DONE", '{"seconds": "no", "notes": []}'),
        ("DONE", '{"seconds": 0, "notes": [{"kode": 1}]}'),
        ("DONE", '{"seconds": 0, "notes": 7}'),
        ("DONE", '{"seconds": NaN, "notes": []}'),
        ("DONE", '{"seconds": -1, "notes": []}'),
        ("FAILED", "{}"),
        ("FAILED", '{"reason": "INTERNAL", "message": "alarm"}'),
        ("FAILED", '{"reason": "FRESH_NEEDED", "message": "alarm"}'),
        ("FAILED", '{"reason": "MODEL_RAISED", "metadata": {"message": 1}}'),
    ],
)
def test_an_answer_that_no_worker_gives_is_no_fault_of_envds(
    ground: Ground, kind: str, head: str
) -> None:
    ground.pid("forked")
    given = ground.ask("forked", "answer", kind, head)
    assert isinstance(given, EnvdError)
    assert given.reason == "WORKER_DIED"


def test_a_note_that_no_answer_can_hold_is_written_out(ground: Ground) -> None:
    head = r'{"seconds": 0, "notes": [{"code": "A", "message": "half \ud800"}]}'
    assert ground.ask("forked", "answer", "DONE", head) == "forged"


@OFTEN
@pytest.mark.parametrize(
    ("word", "items"),
    [
        ("large", [0]),
        ("more than can be counted", [0]),
        ("no end", [0]),
        ("of another", [0]),
    ],
)
def test_who_says_in_a_stream_what_no_worker_says_is_ended(
    ground: Ground, word: str, items: list[int], times: int
) -> None:
    with ground.unharmed(times) as done:
        for number in range(times):
            pid = ground.pid("forked")
            given, reason = ground.stream("forked", word, f"{times} {number}")
            assert reason == "WORKER_DIED"
            assert given[: len(items)] == items
            assert not is_running(pid)
            done()


def test_who_says_an_item_without_an_end_is_ended(ground: Ground) -> None:
    with ground.unharmed(1):
        pid = ground.pid("forked")
        assert ground.stream("forked", "more than an item") == ([0], "WORKER_DIED")
        assert not is_running(pid)


@OFTEN
def test_who_ends_a_stream_and_goes_on_is_ended(ground: Ground, times: int) -> None:
    with ground.unharmed(times) as done:
        for number in range(times):
            pid = ground.pid("forked")
            assert ground.stream("forked", "after the end", f"{times} {number}") == ([0], "")
            wait_for(lambda: not is_running(pid), 20)  # noqa: B023
            done()


@OFTEN
def test_who_answers_twice_has_answered(ground: Ground, times: int) -> None:
    with ground.unharmed(times) as done:
        for number in range(times):
            head = '{"seconds": 0, "notes": []}'
            assert ground.ask("forked", "answer", "DONE", head, number) == "forged"
            # What is asked before the second one has come may die of it.
            wait_for(lambda: isinstance(ground.ask("forked", "say", 1), list), 20)
            done()


# Payloads.


def test_payloads_pass_up_to_the_limit_and_beyond_it_are_refused(ground: Ground) -> None:
    room = _room(ground, "fresh", LIMIT)
    with ground.unharmed(1):
        assert ground.ask("fresh", "take", "x" * room) == room
        assert _is_refused(ground.ask("fresh", "take", "x" * (room + 1)))


def test_answers_pass_up_to_the_limit_and_beyond_it_are_refused(ground: Ground) -> None:
    with ground.unharmed(1):
        given = ground.ask("fresh", "give", LIMIT - ROOM)
        assert given == "x" * (LIMIT - ROOM)
        # What the worker may say, and the daemon may not with what it adds; then neither.
        for over in (LIMIT - 30, LIMIT + 1):
            assert _is_refused(ground.ask("fresh", "give", over))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@KINDS
@pytest.mark.parametrize(("limit", "times"), [(64 << 20, 100), (256 << 20, 20)])
def test_large_payloads_and_answers_are_borne_many_times(
    start_ground: Callable[..., Ground], kind: str, limit: int, times: int
) -> None:
    ground = start_ground(ENVD_DAEMON__MAX_MESSAGE=f"{limit}")
    room = _room(ground, kind, limit)
    # Nobody is served while gRPC copies a message, and three processes share the processors.
    with ground.unharmed(times, most=20 * limit // LIMIT) as done:
        for _ in range(times):
            assert ground.ask(kind, "take", "x" * (room - 1)) == room - 1
            assert ground.ask(kind, "take", "x" * room) == room
            assert ground.ask(kind, "give", limit - ROOM) == "x" * (limit - ROOM)
            for over in (room + 1, 270 << 20):
                assert _is_refused(ground.ask(kind, "take", "x" * over))
            assert _is_refused(ground.ask(kind, "give", limit - 30))
            done()


def _is_refused(given: object) -> bool:
    return isinstance(given, EnvdError) and given.reason == "PAYLOAD_TOO_LARGE"


def _room(ground: Ground, kind: str, limit: int) -> int:
    """Return how long a text may be for a request to that *kind* to be *limit* bytes."""
    few = 4 << 20  # whose length is written in four bytes, as that of *limit* is
    message = requests.predict(
        ground.models[kind],
        ["take", "x" * few],
        content_type=None,
        params=None,
        wait=True,
        override=(),
        env_manager="",
        model_config=None,
    )
    return limit - (message.ByteSize() - few)
