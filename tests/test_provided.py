"""What conda brings counts as installed for the pip section, and pip puts nothing over it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from envd.errors import SolveFailedError
from envd.lock import provided
from envd.lock.provided import Provided
from tests.conda_channel import PURE, Channel, File, Package
from tests.conda_root import CondaRoot, locked
from tests.house import House, sdist, versions, wheel
from tests.index import Index
from tests.mirror import Mirror

WORD = Provided("word", "1.0", "py-word 1.0", ('rich-word>=1; extra == "rich"',))


def test_what_is_there_is_needed_of_no_index(house: House) -> None:
    wheel(house.wheels, "needs-word", "1.0", requires="word>=1")

    lock = house.resolve("needs-word", "word==1", provided=(WORD,))

    assert versions(lock) == ["needs-word==1.0"]


def test_what_is_there_is_not_built_replaced_or_held_to_a_hash(
    house: House, start_index: Callable[..., Index], tmp_path: Path
) -> None:
    index = start_index()
    (tmp_path / "more").mkdir()
    sdist(tmp_path / "more", "word", "1.0", {"setup.py": "raise SystemExit(1)"})
    wheel(tmp_path / "more", "word", "2.0")
    wheel(tmp_path / "more", "needs-word", "1.0", requires="word")
    for file in (tmp_path / "more").iterdir():
        index.add(file, day="2024-01-01")
    house.with_indexes(index.url)

    lock = house.resolve("needs-word", day="2024-02-14", provided=(WORD,))
    pinned = house.resolve(f"word==1.0 --hash=sha256:{'0' * 64}", provided=(WORD,))

    assert versions(lock) == ["needs-word==1.0"]
    assert pinned.packages == ()


def test_the_extras_of_what_is_there_are_locked(house: House) -> None:
    wheel(house.wheels, "rich-word", "1.5")
    wheel(house.wheels, "needs-rich", "1.0", requires="word[rich]")

    assert versions(house.resolve("needs-rich", provided=(WORD,))) == [
        "needs-rich==1.0",
        "rich-word==1.5",
    ]


@pytest.mark.parametrize(
    ("lines", "constraints", "requirements", "names"),
    [
        (("word==2.0",), (), ["word==2"], "py-word, word"),
        (("other", "deep"), (), ["deep"], "deep, py-word"),
        (("other", "needs-word"), ("word!=1.0",), ["needs-word", "word!=1"],
         "needs-word, py-word, word"),
        (("./word-2.0-py3-none-any.whl",), (), ["word @ ./word-2.0-py3-none-any.whl"],
         "py-word, word"),
    ],
)  # fmt: skip
def test_what_wants_another_version_of_it_is_named_with_condas_package(
    lines: tuple[str, ...],
    constraints: tuple[str, ...],
    requirements: list[str],
    names: str,
    house: House,
) -> None:
    wheel(house.model, "word", "2.0")
    for name, needs in (("other", ""), ("needs-two", "word>=2"), ("deep", "needs-two"),
                        ("needs-word", "word"), ("word", "")):  # fmt: skip
        wheel(house.wheels, name, "2.0", requires=needs)

    with pytest.raises(SolveFailedError) as caught:
        house.resolve(*lines, constraints=constraints, day="2024-02-14", provided=(WORD,))

    shown = ", ".join(f"`{one}`" for one in requirements)
    assert f"the pip requirements {shown} do not go with" in caught.value.message
    assert "`word` 1.0 (conda's `py-word 1.0`)" in caught.value.message
    assert "Name a version that fits among the conda packages" in caught.value.message
    assert caught.value.metadata == {
        "packages": names,
        "requirements": ", ".join(requirements),
    }


def test_conda_is_not_named_where_it_has_no_part_in_it(house: House) -> None:
    wheel(house.wheels, "needs-word", "1.0", requires="word>=1,<2")
    wheel(house.wheels, "needs-rich", "1.0", requires="word[rich]>=1")

    for line, missing in (("needs-word", "nowhere"), ("needs-rich", "rich-word")):
        with pytest.raises(SolveFailedError) as caught:
            house.resolve(line, "nowhere" if missing == "nowhere" else line, provided=(WORD,))
        assert missing in caught.value.message
        assert "conda" not in caught.value.message


def test_a_version_that_is_none_to_pip_is_the_one_it_begins_with(house: House) -> None:
    odd = (Provided("odd", "1.2w", "odd 1.2w"), Provided("word", "", "word 1"))

    assert house.resolve("odd>=1.2", "word", provided=odd).packages == ()
    with pytest.raises(SolveFailedError, match=r"`odd` 1\.2w"):
        house.resolve("odd>=1.3", provided=odd)


def test_what_packages_have_brought_is_read_of_their_files(
    channel: Channel, mirror: Mirror, tmp_path: Path
) -> None:
    site = "site-packages"
    channel.add(
        Package("python", "3.11.7", "h1", noarch="", files={"bin/python": "#!/bin/sh\n"}),
        Package(
            "py-word", "1.0", PURE, noarch="python", depends=["python"],
            files={f"{site}/Word_One-1.0.dist-info/METADATA":
                   "Name: Word_One\nVersion: 1.0\nRequires-Dist: six\n"
                   "Requires-Dist: rich (>=10) ; extra == 'cli'\nRequires-Dist: ???\n",
                   f"{site}/vendored/six-1.0.dist-info/METADATA": "Name: six\nVersion: 1\n"},
        ),
        Package(
            "old", "2.0", PURE, noarch="python", depends=["python"],
            files={f"{site}/old-2.0.egg-info/PKG-INFO": "Name: old\nVersion: 2.0.post\n",
                   f"{site}/old-2.0.egg-info/requires.txt": "six\n[more]\nmore>=1\n",
                   f"{site}/older.egg-info": "Name: older\nVersion: 1.0\n",
                   f"{site}/latin-1.dist-info/METADATA":
                   File(b"Name: latin\nVersion: 1.0\nAuthor: J\xfcrgen\n"),
                   f"{site}/none-1.dist-info/METADATA": "Name: ../none\nVersion: 1\n",
                   f"{site}/nameless-1.dist-info/METADATA": "Version: 1\n"},
        ),
    )  # fmt: skip
    packages = locked(channel)
    prefix = CondaRoot.at(tmp_path / "root", mirror).install(packages)

    assert provided.installed(packages, prefix) == (
        Provided("latin", "1.0", "old 2.0"),
        Provided("old", "2.0.post", "old 2.0", ('more>=1; extra == "more"',)),
        Provided("older", "1.0", "old 2.0"),
        Provided("word-one", "1.0", "py-word 1.0", ('rich>=10; extra == "cli"',)),
    )


def test_elsewhere_names_say_what_packages_will_bring(channel: Channel) -> None:
    channel.add(
        Package("python", "3.11.7", "h1", noarch=""),
        Package("pytorch", "2.1.0", "h1", noarch="", depends=["python >=3.11"]),
        Package("pure", "1.0", PURE, noarch="python"),
        Package("libword", "1.0", "h1", noarch="", depends=["python"]),
        Package("nodejs", "20", "h1", noarch=""),
    )

    assert provided.expected(locked(channel)) == (
        Provided("pure", "1.0", "pure 1.0"),
        Provided("torch", "2.1.0", "pytorch 2.1.0"),
    )
