"""Which tries a spec gets, in which order: a table, and nothing is resolved."""

from __future__ import annotations

from dataclasses import replace

import pytest

from envd.lock.rungs import Rung, rungs
from envd.settings.sections import Index
from envd.spec import Dependencies, Python, Spec, of
from envd.spec.options import Options
from envd.spec.requirement_file import Requirements

PYTHON = Python("cpython", "3.11.7", "cpython-311-x86_64-linux-gnu", "linux-x86_64", "glibc-2.36")
BOUND = "mlflow>=2.9"
MONTH, DAY, AFTER = "2024-02-01", "2024-02-14", "2024-02-15T00:00:00Z"


def spec(as_of: str, *bounds: str) -> Spec:
    asked = Requirements((), (), Options(), ())
    found = of(Dependencies("3.11", (), asked, (), bounds=bounds), PYTHON, Index())
    return replace(found, as_of=as_of)


def codes(rung: Rung) -> list[str]:
    return [note.code for note in rung.notes]


def rows(tries: list[Rung]) -> list[tuple[str, tuple[str, ...], list[str]]]:
    return [(one.day, one.limits, codes(one)) for one in tries]


@pytest.mark.parametrize(
    ("as_of", "day", "bounds", "expected"),
    [
        ("", None, (), [("", (), [])]),
        ("", DAY, (), [("", (), [])]),
        ("", None, (BOUND,), [("", (BOUND,), []), ("", (), ["BOUND_DROPPED"])]),
        ("2024-02", None, (), [(MONTH, (), [])]),
        ("2024-02", None, (BOUND,), [(MONTH, (BOUND,), []), (MONTH, (), ["BOUND_DROPPED"])]),
        ("2024-02", DAY, (), [(MONTH, (), []), (DAY, (), ["AS_OF_DAY"])]),
        (
            "2024-02", DAY, (BOUND,),
            [
                (MONTH, (BOUND,), []),
                (MONTH, ("mlflow==2.9",), ["RELEASED_SINCE"]),
                (DAY, (BOUND,), ["AS_OF_DAY"]),
                (MONTH, (), ["BOUND_DROPPED"]),
                (DAY, (), ["AS_OF_DAY", "BOUND_DROPPED"]),
            ],
        ),
    ],
)  # fmt: skip
def test_the_tries_are_these_in_this_order(
    as_of: str,
    day: str | None,
    bounds: tuple[str, ...],
    expected: list[tuple[str, tuple[str, ...], list[str]]],
) -> None:
    assert rows(rungs(spec(as_of, *bounds), day)) == expected


@pytest.mark.parametrize("bounds", [(), (BOUND,)])
def test_only_the_answers_of_the_day_are_those_of_one_day(bounds: tuple[str, ...]) -> None:
    tries = rungs(spec("2024-02", *bounds), DAY)

    assert {one.of_day for one in tries} == {True, False}
    # Whether a bound is dropped depends on what was there on the day.
    assert all(one.of_day == (one.day == DAY or "BOUND_DROPPED" in codes(one)) for one in tries)


@pytest.mark.parametrize(
    ("day", "after"),
    [(DAY, AFTER), ("2024-02-29", "2024-03-01T00:00:00Z"), ("2024-02-01", "2024-02-02T00:00:00Z"),
     (None, "2024-02-02T00:00:00Z")],
)  # fmt: skip
def test_what_is_uploaded_on_the_day_itself_is_there(day: str | None, after: str) -> None:
    for one in rungs(spec("2024-02", BOUND), day):
        assert one.logged == after
        assert one.moment == (after if "AS_OF_DAY" in codes(one) else f"{MONTH}T00:00:00Z")


@pytest.mark.parametrize(
    ("bound", "exempt"),
    [
        (BOUND, ("mlflow", "mlflow-skinny", "mlflow-tracing")),
        ("mlflow-skinny>=2.9", ("mlflow-skinny", "mlflow-tracing")),
    ],
)
def test_of_the_one_released_since_only_it_and_its_siblings_are_younger(
    bound: str, exempt: tuple[str, ...]
) -> None:
    tries = rungs(spec("2024-02", bound), DAY)

    assert [one.exempt for one in tries] == [(), exempt, (), (), ()]
    assert tries[1].limits == (bound.replace(">=", "=="),)


def test_the_notes_name_what_they_are_about() -> None:
    _, since, day, dropped, _ = rungs(spec("2024-02", BOUND), DAY)

    for rung, subject, said in (
        (since, "mlflow==2.9", f"`mlflow==2.9` came out after {MONTH}"),
        (day, DAY, f"as of {MONTH}; they are resolved as of {DAY}"),
        (dropped, BOUND, f"no packages of {MONTH} go with `{BOUND}`"),
    ):
        (note,) = rung.notes
        assert note.subject == subject
        assert said in note.message
