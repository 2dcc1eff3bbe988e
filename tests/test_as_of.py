"""What a model left open is resolved as of its month, else of its day: real, dated indexes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from envd.config import Resolve
from envd.errors import InstallFailedError, SolveFailedError
from envd.events import Line
from envd.lock import Lock
from tests import tiny
from tests.house import House, versions, wheel_file
from tests.index import Index

DAY = "2024-02-14"


@pytest.fixture
def index(house: House, start_index: Callable[..., Index]) -> Index:
    found = start_index()
    house.with_indexes(found.url)
    return found


def upload(house: House, index: Index, pinned: str, day: str, *requires: str) -> None:
    name, _, version = pinned.partition("==")
    index.add(wheel_file(house.wheels, name, version, "py3-none-any", *requires), day)


def codes(lock: Lock) -> list[str]:
    return [note.code for note in lock.notes]


def test_an_open_requirement_gets_what_was_there_when_the_month_began(
    house: House, index: Index
) -> None:
    upload(house, index, "tiny-a==1.0", "2023-11-02", "tiny-b")
    upload(house, index, "tiny-a==2.0", "2024-02-01", "tiny-b")
    upload(house, index, "tiny-b==1.0", "2024-01-31T23:59:59.000000Z")
    upload(house, index, "tiny-b==1.1", "2024-02-02")

    lock = house.resolve("tiny-a", day=DAY)

    assert versions(lock) == ["tiny-a==1.0", "tiny-b==1.0"]
    assert (lock.as_of, lock.notes) == ("2024-02-01", ())


def test_a_model_without_a_day_gets_todays_versions(house: House, index: Index) -> None:
    upload(house, index, "tiny-a==1.0", "2023-11-02")
    upload(house, index, "tiny-a==2.0", "2024-02-02")

    lock = house.resolve("tiny-a")

    assert versions(lock) == ["tiny-a==2.0"]
    assert lock.as_of == ""


def test_a_pin_that_is_younger_than_the_month_is_kept(house: House, index: Index) -> None:
    upload(house, index, "tiny-a==1.0", "2023-11-02")
    upload(house, index, "tiny-a==2.0", "2024-02-10", "tiny-b")
    upload(house, index, "tiny-b==1.0", "2024-01-02")
    upload(house, index, "tiny-b==2.0", "2024-02-10")

    lock = house.resolve("tiny-a==2.0", day=DAY)

    assert versions(lock) == ["tiny-a==2.0", "tiny-b==1.0"]
    assert (lock.as_of, lock.notes) == ("2024-02-01", ())


@pytest.mark.parametrize("where", ["constraints", "build"])
def test_a_pin_counts_wherever_it_stands(house: House, index: Index, where: str) -> None:
    upload(house, index, "tiny-a==1.0", "2023-11-02")
    upload(house, index, "tiny-a==2.0", "2024-02-10")

    lock = house.resolve("tiny-a", day=DAY, **{where: ("tiny-a==2.0",)})

    assert versions(lock) == ["tiny-a==2.0"]
    assert lock.as_of == "2024-02-01"


def test_the_siblings_that_a_pinned_mlflow_pins_are_as_young_as_it(
    house: House, index: Index
) -> None:
    siblings = ("mlflow-skinny==3.1", "mlflow-tracing==3.1")
    upload(house, index, "mlflow==3.1", "2024-02-10", *siblings, "tiny-b")
    upload(house, index, "mlflow-skinny==3.1", "2024-02-10", "mlflow-tracing==3.1")
    upload(house, index, "mlflow-tracing==3.1", "2024-02-10")
    upload(house, index, "tiny-b==1.0", "2024-01-02")
    upload(house, index, "tiny-b==2.0", "2024-02-10")

    lock = house.resolve("mlflow==3.1", day=DAY)

    assert versions(lock) == ["mlflow==3.1", *siblings, "tiny-b==1.0"]
    assert lock.as_of == "2024-02-01"


def test_where_the_month_has_no_answer_the_day_has(house: House, index: Index) -> None:
    upload(house, index, "tiny-a==1.0", "2023-11-02")
    # What was uploaded on the very day may have been there already.
    upload(house, index, "tiny-a==2.0", f"{DAY}T23:30:00.000000Z")
    upload(house, index, "tiny-a==3.0", "2024-02-15T00:30:00.000000Z")

    lock = house.resolve("tiny-a>=2", day=DAY)

    assert versions(lock) == ["tiny-a==2.0"]
    assert lock.as_of == DAY
    (note,) = lock.notes
    assert (note.code, note.subject) == ("AS_OF_DAY", DAY)
    assert "as of 2024-02-01" in note.message


def test_where_neither_has_an_answer_both_are_named(house: House, index: Index) -> None:
    upload(house, index, "tiny-a==1.0", "2023-11-02")
    upload(house, index, "tiny-a==2.0", "2024-02-15")

    with pytest.raises(SolveFailedError) as caught:
        house.resolve("tiny-a>=2", day=DAY)

    assert "warning" not in caught.value.message
    for part in ("2024-02-01", DAY, "resolve.as_of", "ENVD_RESOLVE__AS_OF"):
        assert part in caught.value.message


def test_the_day_of_the_month_is_not_part_of_the_spec(house: House, index: Index) -> None:
    upload(house, index, "tiny-a==1.0", "2023-11-02")
    upload(house, index, "tiny-a==2.0", "2024-02-10")

    keys = {house.ask("tiny-a", day=day).spec.key for day in ("2024-02-01", DAY, "2024-02-29")}
    other = house.ask("tiny-a", day="2024-03-01")
    house.settings = replace(house.settings, resolve=Resolve("now", repair=False))
    now = house.ask("tiny-a", day=DAY)

    assert len(keys) == 1
    assert len({*keys, other.spec.key, now.spec.key}) == 3
    assert versions(house.environments.lock(other)) == ["tiny-a==2.0"]
    assert house.environments.lock(now).as_of == ""


def test_a_source_is_built_with_what_the_month_had(house: House, index: Index) -> None:
    for version, day in (("1.0", "2024-01-02"), ("2.0", "2024-02-10")):
        upload(house, index, f"tiny-tool=={version}", day)
    build = "import tiny_tool; global MODULE; MODULE = 'BUILT_WITH = ' + tiny_tool.VERSION"
    for version in ("1.0", "1.5"):
        index.add(tiny.sdist(house.wheels, "tiny-a", version, build, "tiny-tool"), "2024-01-03")

    then = house.ask("tiny-a==1.0", day=DAY)
    now = house.ask("tiny-a==1.5", day="2024-03-01")

    assert "BUILT_WITH = 1.0" in text_of_the_one_wheel(house, house.environments.lock(then))
    assert "BUILT_WITH = 2.0" in text_of_the_one_wheel(house, house.environments.lock(now))


def text_of_the_one_wheel(house: House, lock: Lock) -> str:
    (one,) = lock.packages
    # Neither file of the archive is compressed.
    return (house.root / "wheels" / one.sha256 / one.filename).read_bytes().decode("latin-1")


def test_a_source_whose_build_needs_what_came_later_is_built_as_of_the_day(
    house: House, index: Index
) -> None:
    upload(house, index, "tiny-tool==1.0", "2024-01-02")
    upload(house, index, "tiny-tool==2.0", "2024-02-10")
    index.add(tiny.sdist(house.wheels, "tiny-a", "1.0", "", "tiny-tool>=2"), "2024-01-03")

    lock = house.resolve("tiny-a", day=DAY)

    assert (lock.as_of, codes(lock)) == (DAY, ["AS_OF_DAY"])


def test_a_build_that_fails_as_of_both_days_names_both(house: House, index: Index) -> None:
    index.add(
        tiny.sdist(house.wheels, "tiny-a", "1.0", "raise SystemExit('no luck')"), "2024-01-03"
    )

    with pytest.raises(InstallFailedError, match=r"no luck.*2024-02-01 and of 2024-02-14"):
        house.resolve("tiny-a", day=DAY)


def test_an_index_without_dates_is_exempt(house: House, start_index: Callable[..., Index]) -> None:
    undated = start_index(is_dated=False)
    house.with_indexes(undated.url)
    upload(house, undated, "tiny-a==1.0", "2023-11-02")

    lock = house.resolve("tiny-a", day=DAY)

    assert versions(lock) == ["tiny-a==1.0"]
    assert lock.as_of == "2024-02-01"
    (note,) = lock.notes
    assert (note.code, note.subject) == ("INDEX_UNDATED", undated.url)


@pytest.mark.parametrize("undated_first", [True, False])
def test_a_dated_index_beside_one_without_dates_still_counts(
    house: House, index: Index, start_index: Callable[..., Index], *, undated_first: bool
) -> None:
    undated = start_index(is_dated=False)
    urls = (undated.url, index.url) if undated_first else (index.url, undated.url)
    house.with_indexes(*urls)
    upload(house, undated, "tiny-b==1.0", "2024-06-01")
    upload(house, index, "tiny-a==1.0", "2024-01-02", "tiny-b")
    upload(house, index, "tiny-a==2.0", "2024-02-10", "tiny-b")

    lock = house.resolve("tiny-a", day=DAY)

    assert versions(lock) == ["tiny-a==1.0", "tiny-b==1.0"]
    assert [(note.code, note.subject) for note in lock.notes] == [("INDEX_UNDATED", undated.url)]


@pytest.mark.parametrize("dash", ["tiny_b-1.0.tar.gz", "tiny-b-1.0.tar.gz"])
def test_a_source_archive_tells_its_index_apart_too(
    house: House, index: Index, start_index: Callable[..., Index], dash: str
) -> None:
    undated = start_index(is_dated=False)
    house.with_indexes(undated.url, index.url)
    archive = tiny.sdist(house.wheels, "tiny-b", "1.0")
    undated.add(archive.rename(archive.with_name(dash)))
    upload(house, index, "tiny-a==1.0", "2024-01-02", "tiny-b")

    lock = house.resolve("tiny-a", day=DAY)

    assert versions(lock) == ["tiny-a==1.0", "tiny-b==1.0"]
    assert [note.subject for note in lock.notes] == [undated.url]


@pytest.mark.parametrize("is_tree", [True, False])
def test_what_a_source_is_built_with_may_come_from_an_index_without_dates(
    house: House, start_index: Callable[..., Index], *, is_tree: bool
) -> None:
    undated = start_index(is_dated=False)
    house.with_indexes(undated.url)
    upload(house, undated, "tiny-tool==1.0", "2024-06-01")
    if is_tree:
        tiny.tree(house.model / "pkg", "tiny-a", "1.0", "import tiny_tool", "tiny-tool")
    else:
        undated.add(tiny.sdist(house.wheels, "tiny-a", "1.0", "import tiny_tool", "tiny-tool"))

    lock = house.resolve("./pkg" if is_tree else "tiny-a", day=DAY)

    assert versions(lock) == ["tiny-a==1.0"]
    assert codes(lock) == ["INDEX_UNDATED"]


def test_a_build_cannot_say_that_an_index_has_no_dates(house: House, index: Index) -> None:
    upload(house, index, "tiny-tool==1.0", "2024-01-02")
    upload(house, index, "tiny-tool==2.0", "2024-06-01")
    lie = "warning: `tiny_tool-2.0-py3-none-any.whl` is missing an upload date"
    build = f"import tiny_tool; print({lie!r}); raise SystemExit('with ' + tiny_tool.VERSION)"
    index.add(tiny.sdist(house.wheels, "tiny-a", "1.0", build, "tiny-tool"), "2024-01-02")

    with pytest.raises(InstallFailedError, match=r"is missing an upload date.*with 1\.0"):
        house.resolve("tiny-a", day=DAY)

    lines = [one.text for one in house.events if isinstance(one, Line)]
    assert any("with 1.0" in one for one in lines)
    assert not any("with 2.0" in one for one in lines)


def test_a_folder_of_packages_needs_no_exemption(house: House, index: Index) -> None:
    house.with_index(find_links=(str(house.wheels),))
    wheel_file(house.wheels, "tiny-a", "1.0")
    upload(house, index, "tiny-b==1.0", "2024-01-02")
    (house.wheels / "tiny_b-1.0-py3-none-any.whl").unlink()
    index.add(wheel_file(house.folder / "empty", "tiny-b", "2.0"), "2024-02-10")

    lock = house.resolve("tiny-a", "tiny-b", day=DAY)

    assert versions(lock) == ["tiny-a==1.0", "tiny-b==1.0"]
    assert lock.notes == ()
