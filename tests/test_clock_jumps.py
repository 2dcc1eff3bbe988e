"""The wall clock set forward and back by ten years: nothing grows old, nothing becomes young."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from envd.store.clock import Clock
from tests.conftest import Envctl
from tests.tiny import Tiny, sdist

_YEAR_S = 365 * 86400
_INPUT = '{"inputs": [1]}'
_ANSWER = '{"predictions": ["2.0", [1]]}\n'
_MONTH = ("--max-age", "30d", "--unused-for", "30d")


class Fresh(Envctl):
    """The command in a Python of its own: what is preloaded, a program gets as it starts."""

    def __call__(
        self, *arguments: object, stdin: str = "", **changed: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*arguments),
            env=self.env | changed,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )


@pytest.fixture
def jumped(envctl: Envctl) -> Callable[[str], Envctl]:
    """envctl on the same root and another wall clock; its children and the kernel have ours."""
    found = sorted(Path("/usr").glob("lib*/**/libfaketime.so.1"))
    if not found:
        pytest.skip("no libfaketime is installed; it is in Debian's package `libfaketime`")

    def jump(offset: str) -> Envctl:
        faked = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME": offset,
            # Setting the wall clock changes neither the boot's nor the date of any file.
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
        return Fresh(envctl.root, envctl.env | faked)

    return jump


def test_what_was_used_since_the_boot_stays_and_is_as_old_as_it_is(
    envctl: Envctl, jumped: Callable[[str], Envctl], tiny: Tiny, tmp_path: Path
) -> None:
    used, unused = tiny.model(tmp_path / "used"), tiny.model(tmp_path / "unused", "tiny-b")
    envctl("predict", "-m", used, stdin=_INPUT)
    envctl("build", "-m", unused)
    # It has a lock and no environment, and a log.
    envctl("lock", "-m", tiny.model(tmp_path / "locked", "tiny-a==1.0"))
    kept = _names(envctl.root / "specs", envctl.root / "logs")
    verdicts, listed, tables = [], [], []

    for changed in (jumped("+10y"), jumped("-10y")):
        answered = changed("predict", "-m", used, stdin=_INPUT)
        assert answered.stdout == _ANSWER, answered.stderr
        for options in ((), _MONTH):
            verdicts += json.loads(changed("gc", *options, "--json").stdout)["environments"]
        listed += json.loads(changed("list", "--json").stdout)
        tables.append(changed("list").stdout)

    assert [one["verdict"] for one in verdicts] == ["keep"] * 8
    assert kept <= _names(envctl.root / "specs", envctl.root / "logs")
    assert sorted(one["uses"] for one in listed) == [0, 0, 2, 3]
    now = dt.datetime.now(dt.UTC)
    for one in listed:
        ages = [now - dt.datetime.fromisoformat(one[name]) for name in ("created", "last_used")]
        assert all(dt.timedelta(0) <= age < dt.timedelta(minutes=10) for age in ages)
    assert not [one for one in tables if " d ago" in one or "y ago" in one]


def _names(*folders: Path) -> set[str]:
    return {one.name for folder in folders for one in folder.iterdir()}


@pytest.mark.parametrize("jump", ["+10y", "-10y"])
def test_what_is_due_goes_whatever_the_wall_clock_says(
    envctl: Envctl, jumped: Callable[[str], Envctl], tiny: Tiny, tmp_path: Path, jump: str
) -> None:
    envctl("build", "-m", tiny.model(tmp_path / "model"))

    found = json.loads(jumped(jump)("gc", "--unused-for", "0s", "--json").stdout)

    assert [one["verdict"] for one in found["environments"]] == ["remove"]


def test_a_failure_is_remembered_neither_longer_nor_shorter(
    envctl: Envctl, jumped: Callable[[str], Envctl], tiny: Tiny, tmp_path: Path
) -> None:
    sdist(tmp_path, "broken", "1.0", "raise SystemExit('it cannot be built')")
    envctl.env["ENVD_INDEX__FIND_LINKS"] += f",{tmp_path}"
    forward, back = jumped("+10y"), jumped("-10y")
    model = tiny.model(tmp_path / "model", "broken")
    envctl("build", "-m", model)

    again = [_failure(one("build", "-m", model, "--json").stdout) for one in (forward, back)]
    forward("build", "-m", model, "--retry")
    again += [_failure(one("build", "-m", model, "--json").stdout) for one in (back, envctl)]

    for failure in again:
        assert failure["reason"] == "INSTALL_FAILED"
        assert "it failed so before" in str(failure["message"])
        assert 3600 - 300 < float(str(failure["retry_after_s"])) <= 3600


def _failure(text: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(text)["failure"]
    return found


def test_the_clock_goes_on_from_where_the_boot_began(tmp_path: Path) -> None:
    first = Clock(tmp_path).now()
    second = Clock(tmp_path).now()

    assert first < second < first + 60
    assert first == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize("years", [-10, 0, 10])
def test_the_clock_never_goes_back_over_a_boot(tmp_path: Path, years: int) -> None:
    before = time.time() + years * _YEAR_S
    _boot_before(tmp_path, before)

    clock = Clock(tmp_path)

    assert clock.now() >= max(before, time.time() - 60)
    assert clock.age(before) == pytest.approx(max(0, -years) * _YEAR_S, abs=60)
    assert Clock(tmp_path).now() == pytest.approx(clock.now(), abs=60)


def test_a_root_that_cannot_be_written_has_a_clock(tmp_path: Path) -> None:
    (tmp_path / "clock.json").mkdir()

    assert Clock(tmp_path).now() == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"boot": 1}', "null", "\0" * 40, "\udcff"])
def test_a_damaged_clock_starts_at_the_wall_clock(tmp_path: Path, damage: str) -> None:
    (tmp_path / "clock.json").write_text(damage, errors="surrogateescape")

    assert Clock(tmp_path).now() == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize(("jump", "verdict"), [("+10y", "remove"), ("-10y", "keep")])
def test_only_a_boot_makes_what_the_wall_clock_says_count(
    envctl: Envctl,
    jumped: Callable[[str], Envctl],
    tiny: Tiny,
    tmp_path: Path,
    jump: str,
    verdict: str,
) -> None:
    envctl("build", "-m", tiny.model(tmp_path / "model"))
    _boot_before(envctl.root, time.time())

    found = json.loads(jumped(jump)("gc", "--json").stdout)

    # Ten years without power cannot be told from a wall clock that is wrong.
    assert [one["verdict"] for one in found["environments"]] == [verdict]


def _boot_before(root: Path, wall: float) -> None:
    document = {"boot": "another boot", "wall": wall, "since_boot": 86400.0}
    (root / "clock.json").write_text(json.dumps(document))
