"""Modules and the distributions that are known to bring them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from envd import modules
from envd.modules import Origin, distribution_of, origin_of

LINES = [
    one.split()
    for one in Path(modules.__file__).with_name("modules.txt").read_text().splitlines()
    if one and not one.startswith("#")
]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("bs4", "beautifulsoup4"),
        ("bs4.element", "beautifulsoup4"),
        ("cv2", "opencv-python-headless"),
        ("yaml", "PyYAML"),
        ("sklearn.ensemble._forest", "scikit-learn"),
        ("PIL.Image", "Pillow"),
        ("dateutil", "python-dateutil"),
        ("google.protobuf.message", "protobuf"),
        ("google.cloud.storage.blob", "google-cloud-storage"),
        ("google", None),
        ("google.cloud.unheard_of", None),
        ("unheard_of", None),
        ("", None),
    ],
)
def test_a_module_comes_from_what_is_known_of_it_or_its_package(
    module: str, expected: str | None
) -> None:
    assert distribution_of(module) == expected


def test_others_that_bring_the_same_module_are_known_too() -> None:
    assert origin_of("psycopg2.extras") == Origin("psycopg2", "psycopg2-binary", ("psycopg2",))
    assert origin_of("psycopg2").candidates == ("psycopg2-binary", "psycopg2")


def test_where_which_one_is_meant_cannot_be_known_nothing_is_chosen() -> None:
    found = origin_of("pdfminer.high_level")

    assert found == Origin("pdfminer", None, ("pdfminer.six", "pdfminer"))
    assert found.candidates == found.others
    assert origin_of("unheard_of.part") == Origin("unheard_of.part")


def test_the_table_names_each_module_once_with_a_distribution() -> None:
    names = [one[0].removeprefix("?") for one in LINES]

    assert len(names) == len(set(names)) > 300
    assert all(len(one) >= 2 for one in LINES)
    words = {word for one in LINES for word in one}
    assert [one for one in words if not re.fullmatch(r"\??[A-Za-z0-9][\w.-]*", one)] == []
