"""Takes figures of several contenders in turn, and prints them with their conditions.

A machine is never equally busy twice: only figures taken one right after the other, in
either order, can be compared, and of their ratios the worst is the one to quote.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from envd.errors import EnvdError

MIN_ROUNDS = 3
Round = dict[str, float]


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that is measured: each call of `measure` gives one figure, or several by name."""

    name: str
    measure: Callable[[], float | Round]
    last: int | None = None  # it takes part in so many rounds, the last ones; None means all


@dataclass(frozen=True, slots=True)
class Aim:
    """The figure of one contender shall be at most so many times that of another."""

    of: str
    to: str
    at_most: float


@dataclass(frozen=True, slots=True)
class Limit:
    """What a figure may be at most."""

    of: str
    most: float

    def text(self, taken: Sequence[Round]) -> str:
        """Return the worst figure and whether it is within the limit."""
        worst = max(one[self.of] for one in taken if self.of in one)
        return f"worst {worst:.4g}, <= {self.most:g}: {'met' if worst <= self.most else 'not met'}"


@dataclass(frozen=True, slots=True)
class Report:
    """What a benchmark found, and under which conditions."""

    benchmark: str
    subject: str
    unit: str
    rounds: Sequence[Round]
    aims: Sequence[Aim]
    conditions: Mapping[str, object]

    def document(self) -> dict[str, Any]:
        """Return it as JSON values, with the ratios and whether they are as aimed at."""
        outcomes = [self._outcome(aim) for aim in self.aims]
        return dataclasses.asdict(self) | {"taken": self._taken(), "aims": outcomes}

    def text(self) -> str:
        """Return it as tables."""
        taken = self._taken()
        figures = [
            (name, *(f"{one[name]:.2f}" if name in one else "" for one in self.rounds))
            for name in taken
        ]
        numbers = [str(number) for number in range(1, len(self.rounds) + 1)]
        return "\n".join(
            [
                f"{self.subject}, {self.unit}",
                "Rounds: " + _counts(taken),
                "",
                *_table([("round", *numbers), *figures]),
                "",
                *_table([("ratio", *numbers, "worst", "aim", ""), *map(self._row, self.aims)]),
                "",
                *_table([(name, str(value)) for name, value in self.conditions.items()]),
            ]
        )

    def _taken(self) -> dict[str, int]:
        """Return how many figures there are of each contender."""
        return dict(Counter(name for one in self.rounds for name in one))

    def _outcome(self, aim: Aim) -> dict[str, Any]:
        ratios = [
            one[aim.of] / one[aim.to] if aim.of in one and aim.to in one else None
            for one in self.rounds
        ]
        worst = max(ratio for ratio in ratios if ratio is not None)
        found = {"ratios": ratios, "worst": worst, "met": worst <= aim.at_most}
        return dataclasses.asdict(aim) | found

    def _row(self, aim: Aim) -> tuple[str, ...]:
        outcome = self._outcome(aim)
        ratios = ("" if one is None else _times(one) for one in outcome["ratios"])
        met = "met" if outcome["met"] else "not met"
        worst, most = _times(outcome["worst"]), _times(aim.at_most)
        return (f"{aim.of} / {aim.to}", *ratios, worst, f"<= {most}", met)


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a benchmark's *command* the options that all have."""
    for option in (
        click.option("--json", "is_json", is_flag=True, help="One JSON object on stdout."),
        click.option("--quick", is_flag=True, help="In a minute; slow contenders run once."),
        click.option(
            "--rounds",
            "rounds_",
            type=click.IntRange(MIN_ROUNDS),
            default=MIN_ROUNDS,
            show_default=True,
            help="How often everything is measured.",
        ),
    ):
        command = option(command)
    return command


def alternate(contenders: Sequence[Contender], rounds: int) -> list[Round]:
    """Measure each of *contenders* in turn, *rounds* times, every other time backwards."""
    found = []
    for number in range(rounds):
        order = contenders if number % 2 == 0 else contenders[::-1]
        figures: dict[str, Round] = {}
        for one in order:
            if one.last is None or number >= rounds - one.last:
                figures[one.name] = _figures(one)
                for name, figure in figures[one.name].items():
                    say(f"round {number + 1}: {name} {figure:.2f}")
        taken = [figures[one.name] for one in contenders if one.name in figures]
        found.append({name: figure for one in taken for name, figure in one.items()})
    return found


def _figures(one: Contender) -> Round:
    measured = one.measure()
    if isinstance(measured, dict):
        return {f"{one.name}: {name}": figure for name, figure in measured.items()}
    return {one.name: measured}


def seconds(act: Callable[[], object]) -> float:
    """Return how long *act* takes."""
    # Who flushes the disk must not pay for what others have left to be written.
    os.sync()
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def run(
    argv: Sequence[str | Path], environ: Mapping[str, str] | None = None, *, given: str = ""
) -> str:
    """Run *argv*, *given* on its stdin, and return what it wrote.

    Raises:
        click.ClickException: it failed; the message ends with what it said.
    """
    finished = subprocess.run(
        argv,
        env=environ,
        check=False,
        text=True,
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if finished.returncode != 0:
        message = f"`{argv[0]}` failed:\n{finished.stdout[-2000:]}"
        raise click.ClickException(message)
    return finished.stdout


@contextlib.contextmanager
def failing_briefly() -> Iterator[None]:
    """Turn what keeps a benchmark from measuring into one message and exit status 1."""
    try:
        yield
    except (EnvdError, OSError) as error:
        raise click.ClickException(str(error)) from error


def machine(directory: Path) -> dict[str, object]:
    """Return what figures depend on: the machine, and the filesystem of *directory*."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "filesystem": _filesystem(directory),
        "Python": platform.python_version(),
    }


def load() -> str:
    """Return the machine's load average over one, five and fifteen minutes."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def show(report: Report, *, is_json: bool) -> None:
    """Write *report* to stdout."""
    print(json.dumps(report.document(), indent=1) if is_json else report.text())


def say(text: str) -> None:
    """Write talk to stderr: stdout has the report and nothing else."""
    print(text, file=sys.stderr, flush=True)


def _counts(taken: Mapping[str, int]) -> str:
    if len(set(taken.values())) == 1:
        return str(next(iter(taken.values())))
    return ", ".join(f"{count} of {name}" for name, count in taken.items())


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((one.partition(":")[2].strip() for one in lines if "model name" in one), "unknown")


def _filesystem(directory: Path) -> str:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    mounts = [(place, kind) for _, place, kind, *_ in map(str.split, lines)]
    over = [mount for mount in mounts if directory.resolve().is_relative_to(mount[0])]
    # Of two on the same place the later one is seen.
    return max(reversed(over), key=lambda mount: len(mount[0]))[1]


def _times(ratio: float) -> str:
    return f"{ratio:.3g}" if ratio >= 1 else f"1/{1 / ratio:.3g}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
