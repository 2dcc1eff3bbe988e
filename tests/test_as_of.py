"""What a model left open is resolved as of its month, else of its day: real, dated indexes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from envd.environments.asked import Asked
from envd.errors import InstallFailedError, SolveFailedError
from envd.events import Line
from envd.lock import Lock
from envd.model import mlmodel
from envd.settings.sections import Resolve
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


def test_an_upgrade_puts_the_answer_of_the_month_in_the_place_of_a_days(
    house: House, index: Index
) -> None:
    upload(house, index, "tiny-a==2.0", "2024-02-10")
    asked = house.ask("tiny-a>=2", day=DAY)
    house.ready(asked)
    assert house.lock_of(asked).day == DAY

    upload(house, index, "tiny-a==2.1", "2024-01-10")
    upgraded = house.ready(asked, upgrade=True)

    assert house.lock_of(asked).day == ""
    assert house.environments.find(asked) == upgraded.environment


def test_a_bound_yields_to_the_date_and_not_to_the_profile(house: House, mlflows: Index) -> None:
    upload(house, mlflows, "mlflow==2.7", "2023-01-02")
    house.with_security(profile="strict")

    with pytest.raises(SolveFailedError):
        house.environments.lock(ask_mended(house, "mlflow", day=DAY, mlflow="9.0"))


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


@pytest.mark.parametrize("days", [("2024-02-10", DAY), (DAY, "2024-02-10")])
def test_an_answer_of_a_day_is_not_that_of_another_day(
    house: House, index: Index, days: tuple[str, str]
) -> None:
    upload(house, index, "tiny-a==1.0", "2023-11-02")
    upload(house, index, "tiny-a==2.0", "2024-02-08")
    upload(house, index, "tiny-a==2.5", "2024-02-12")
    right = {"2024-02-10": ["tiny-a==2.0"], DAY: ["tiny-a==2.5"]}
    asked = {day: house.ask("tiny-a>=2", day=day, name=day) for day in days}

    # The second time each is read from its file.
    for day in (*days, *days):
        lock = house.environments.lock(asked[day])

        assert versions(lock) == right[day]
        assert (lock.as_of, lock.day) == (day, day)
        assert [(note.code, note.subject) for note in lock.notes] == [("AS_OF_DAY", day)]
        assert house.environments.kept_lock(asked[day]) == lock
    assert len({one.spec.key for one in asked.values()}) == 1


@pytest.mark.parametrize("is_earlier_first", [True, False])
def test_a_day_without_an_answer_gets_none_of_another_day(
    house: House, index: Index, *, is_earlier_first: bool
) -> None:
    upload(house, index, "tiny-a==1.0", "2023-11-02")
    upload(house, index, "tiny-a==2.0", "2024-02-10")
    early = house.ask("tiny-a>=2", day="2024-02-09", name="early")
    late = house.ask("tiny-a>=2", day=DAY, name="late")
    assert early.spec.key == late.spec.key

    if not is_earlier_first:
        house.ready(late)
    with pytest.raises(SolveFailedError, match="2024-02-01 and of 2024-02-09"):
        house.ready(early)

    assert versions(house.environments.lock(late)) == ["tiny-a==2.0"]
    assert house.environments.kept_lock(early) is None
    assert house.environments.find(early) is None


def test_an_answer_of_the_month_is_that_of_all_its_days(house: House, index: Index) -> None:
    upload(house, index, "tiny-a==1.0", "2023-11-02")
    first = house.environments.lock(house.ask("tiny-a", day="2024-02-10"))
    before = len(index.requests)

    other = house.ask("tiny-a", day=DAY)

    assert house.environments.kept_lock(other) == house.environments.lock(other) == first
    assert first.day == ""
    assert len(index.requests) == before


# A bare mlflow, of a model that says which one wrote it.


def ask_mended(house: House, *lines: str, day: str, mlflow: str) -> Asked:
    """Ask for *lines* of a model that *mlflow* wrote, with what is mended in such models."""
    house.settings = replace(house.settings, resolve=Resolve(repair=True))
    house.ask(*lines, day=day, name=day)
    mlmodel_file = house.folder / day / "MLmodel"
    mlmodel_file.write_text(f"{mlmodel_file.read_text()}mlflow_version: {mlflow}\n")
    return house.environments.ask(mlmodel.read(house.folder / day))


def upload_mlflow(house: House, index: Index, version: str, day: str) -> None:
    siblings = (f"mlflow-skinny=={version}", f"mlflow-tracing=={version}")
    upload(house, index, f"mlflow=={version}", day, *siblings, "tiny-b")
    upload(house, index, siblings[0], day, siblings[1])
    upload(house, index, siblings[1], day)


def of_mlflow(version: str) -> list[str]:
    return [f"{name}=={version}" for name in ("mlflow", "mlflow-skinny", "mlflow-tracing")]


@pytest.fixture
def mlflows(house: House, index: Index) -> Index:
    """mlflow 2.8 of the year before; 2.9 and 2.10 of that February, and so with tiny-b."""
    # The repairs add it.
    upload(house, index, "setuptools==80.0", "2023-01-02")
    for version, day in (("2.8", "2023-11-02"), ("2.9", "2024-02-05"), ("2.10", "2024-02-12")):
        upload_mlflow(house, index, version, day)
    upload(house, index, "tiny-b==1.0", "2024-01-02")
    upload(house, index, "tiny-b==2.0", "2024-02-03")
    return index


def without_setuptools(lock: Lock) -> list[str]:
    return [one for one in versions(lock) if not one.startswith("setuptools==")]


@pytest.mark.usefixtures("mlflows")
def test_a_bound_that_the_month_meets_is_held_to_silently(house: House) -> None:
    lock = house.environments.lock(ask_mended(house, "mlflow", day=DAY, mlflow="2.7.1"))

    assert without_setuptools(lock) == [*of_mlflow("2.8"), "tiny-b==1.0"]
    assert (lock.as_of, lock.day, lock.notes) == ("2024-02-01", "", ())


@pytest.mark.usefixtures("mlflows")
@pytest.mark.parametrize("days", [("2024-02-06", DAY), (DAY, "2024-02-06")])
@pytest.mark.parametrize("has_fresh_roots", [True, False])
def test_an_mlflow_of_that_month_is_the_same_for_all_who_have_it(
    house: House, days: tuple[str, str], *, has_fresh_roots: bool
) -> None:
    asked, locks = [], []
    for day in days:
        if has_fresh_roots:
            house.settings = replace(house.settings, root=house.folder / f"root-{day}")
        asked.append(ask_mended(house, "mlflow", day=day, mlflow="2.9"))
        locks.append(house.environments.lock(asked[-1]))

    assert asked[0].spec.key == asked[1].spec.key
    assert locks[0] == locks[1]
    # All else is of the first day.
    assert without_setuptools(locks[0]) == [*of_mlflow("2.9"), "tiny-b==1.0"]
    assert (locks[0].as_of, locks[0].day) == ("2024-02-01", "")
    (note,) = locks[0].notes
    assert (note.code, note.subject) == ("RELEASED_SINCE", "mlflow==2.9")


def test_an_mlflow_that_needs_what_came_with_it_is_of_the_day(house: House, mlflows: Index) -> None:
    upload(house, mlflows, "mlflow==2.9", "2024-02-05", *of_mlflow("2.9")[1:], "tiny-b>=2")

    lock = house.environments.lock(ask_mended(house, "mlflow", day="2024-02-06", mlflow="2.9"))

    assert without_setuptools(lock) == [*of_mlflow("2.9"), "tiny-b==2.0"]
    assert (lock.as_of, lock.day) == ("2024-02-06", "2024-02-06")
    assert codes(lock) == ["AS_OF_DAY"]


@pytest.mark.usefixtures("mlflows")
def test_a_bound_that_contradicts_the_date_is_dropped(house: House) -> None:
    lock = house.environments.lock(ask_mended(house, "mlflow", day=DAY, mlflow="9.0"))

    assert without_setuptools(lock) == [*of_mlflow("2.8"), "tiny-b==1.0"]
    assert (lock.as_of, lock.day) == ("2024-02-01", DAY)
    (note,) = lock.notes
    assert (note.code, note.subject) == ("BOUND_DROPPED", "mlflow>=9.0")


@pytest.mark.usefixtures("mlflows")
def test_two_days_of_a_month_with_such_a_bound_share_their_lock(house: House) -> None:
    asked = [ask_mended(house, "mlflow", day=day, mlflow="9.0") for day in (DAY, "2024-02-28")]

    first, second = (house.environments.lock(one) for one in asked)

    assert asked[0].spec.key == asked[1].spec.key
    assert first.packages == second.packages


def test_a_bound_that_contradicts_the_other_requirements_is_dropped(
    house: House, mlflows: Index
) -> None:
    upload(house, mlflows, "tiny-c==1.0", "2024-01-02", "mlflow<2.9")

    lock = house.environments.lock(ask_mended(house, "mlflow", "tiny-c", day=DAY, mlflow="2.9"))

    assert "mlflow==2.8" in versions(lock)
    assert codes(lock) == ["BOUND_DROPPED"]


@pytest.mark.usefixtures("mlflows")
def test_what_neither_bound_nor_day_helps_names_the_days_once(house: House) -> None:
    with pytest.raises(SolveFailedError) as caught:
        house.environments.lock(ask_mended(house, "mlflow", "tiny-b>=3", day=DAY, mlflow="2.9"))

    assert f"as of 2024-02-01 and of {DAY}, when" in caught.value.message


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


def test_a_build_that_fails_is_no_matter_of_the_day(house: House, index: Index) -> None:
    index.add(
        tiny.sdist(house.wheels, "tiny-a", "1.0", "raise SystemExit('no luck')"), "2024-01-03"
    )

    with pytest.raises(InstallFailedError, match="no luck") as caught:
        house.resolve("tiny-a", day=DAY)

    assert "as_of" not in caught.value.message.lower()


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
