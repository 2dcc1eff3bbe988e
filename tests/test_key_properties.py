"""Keys of generated models: no spelling changes one, and no two structures share one."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envd.settings.sections import Index
from envd.spec import Dependencies, Indexes, Python, Requirement, Spec, of
from envd.spec.options import Options
from envd.spec.requirement_file import Requirements
from envd.spec.spec import from_canonical
from envd.spec.urls import PYPI
from tests.keys import PYTHON, Asked
from tests.test_keys import OTHER, SAME

quick = settings(max_examples=30, deadline=None, database=None, derandomize=True)

VERSIONS = ["1", "1.2", "1.2.3", "2.0.1", "10.4.1", "0.5", "3.1rc1", "1.2.post1", "1+cpu"]
SPECIFIERS = st.builds(
    "{}{}".format, st.sampled_from(["==", "!="]), st.sampled_from(VERSIONS)
) | st.sampled_from(["~=1.4", "~=1.4.0", "==1.2.*", ">=1", "<2.0.1", ">0.5", "<=3.1rc1"])
MARKERS = [
    "",
    "python_version < '3.8'",
    "os_name == 'nt' or os_name == 'posix'",
    "(os_name == 'a b' or os_name == 'c') and extra != 'd'",
    "sys_platform in 'linux darwin'",
]
REQUIREMENTS = st.lists(
    st.tuples(
        st.sampled_from(["six", "numpy", "scikit-learn", "a-b-c", "ruamel-yaml", "mlflow"]),
        st.lists(st.sampled_from(["gpu", "cpu-only", "all"]), unique=True, max_size=2),
        st.lists(SPECIFIERS, unique=True, max_size=3),
        st.sampled_from(MARKERS),
    ),
    min_size=1,
    max_size=5,
)
OPTIONS = st.lists(
    st.sampled_from(
        ["--pre", "--no-index", "--no-binary a-b-c", "--only-binary six", "--prefer-binary",
         "--extra-index-url https://host/simple"]
    ),
    unique=True,
    max_size=2,
)  # fmt: skip
Parts = tuple[str, list[str], list[str], str]


def plain(parts: Parts) -> str:
    name, extras, specifiers, marker = parts
    text = name + (f"[{','.join(extras)}]" if extras else "") + ",".join(specifiers)
    return text + (f" ; {marker}" if marker else "")


def respelled(parts: Parts, dice: random.Random) -> str:
    """Write the same requirement in another way."""
    name, extras, specifiers, marker = parts
    extras = [separated(extra, dice) for extra in dice.sample(extras, len(extras))]
    text = separated(name, dice) + (f"[{', '.join(extras)}]" if extras else "")
    written = [zero_padded(one, dice) for one in dice.sample(specifiers, len(specifiers))]
    comma = dice.choice([",", " , ", ", \\\n   "])
    text += dice.choice(["", " "]) + comma.join(written)
    if marker:
        equals = dice.choice(["==", "  == "])
        marker = marker.replace("'", dice.choice("'\"")).replace(" == ", equals)
        text += dice.choice(["; ", " ;", ";", " \\\n;\t"]) + dice.choice([marker, f"( {marker} )"])
    return text + dice.choice(["", "  ", " # why", "\t# six==${SECRET} -r x"])


def separated(name: str, dice: random.Random) -> str:
    spelt = {"-": ["-", "_", ".", "-_"]}
    return "".join(dice.choice(spelt.get(one, [one, one.upper()])) for one in name)


def zero_padded(specifier: str, dice: random.Random) -> str:
    operator = specifier[:2] if specifier[1] == "=" else specifier[0]
    version = specifier.removeprefix(operator)
    if operator == "~=" or not version.replace(".", "").isdigit():
        return operator + dice.choice(["", "  "]) + version
    version = dice.choice(["", "v"]) + version + dice.choice(["", ".0", ".0.0"])
    return operator + dice.choice(["", " "]) + version


def key_of(requirements: str, **included: str) -> str:
    files = {f"{name}.txt": content for name, content in included.items()}
    with tempfile.TemporaryDirectory() as folder:
        return Asked(requirements.encode(), files).spec(Path(folder, "model")).key


@quick
@given(REQUIREMENTS, REQUIREMENTS, OPTIONS, st.randoms(use_true_random=False))
def test_however_a_file_is_written_its_key_is_the_same(
    asked: list[Parts], limits: list[Parts], options: list[str], dice: random.Random
) -> None:
    before = key_of(
        "\n".join([*map(plain, asked), "-c limits.txt", *options]),
        limits="\n".join(map(plain, limits)),
    )

    lines = [respelled(parts, dice) for parts in dice.sample(asked, len(asked))]
    lines += [option.replace(" ", dice.choice([" ", "="]), 1) for option in options]
    dice.shuffle(lines)
    lines.insert(dice.randrange(len(lines) + 1), dice.choice(["", "# numpy==0", "\\", lines[0]]))
    split = dice.randrange(len(lines) + 1)
    end = dice.choice(["\n", "\r\n"])
    file = ["-r more.txt", "--constraint=limits2.txt  # why", *lines[:split]]
    written = end.join(dice.sample(file, len(file))).replace("\\\n", f"\\{end}")
    after = key_of(
        dice.choice(["", "\ufeff"]) + written,
        more="\n".join(lines[split:]),
        limits2="\n".join(respelled(one, dice) for one in dice.sample(limits, len(limits))),
    )

    assert after == before


@quick
@given(
    REQUIREMENTS,
    st.sampled_from(["pandas", "six==99", "six[other]", "six; os_name == 'x'", "--no-binary x"]),
    st.randoms(use_true_random=False),
)
def test_one_line_more_is_another_key(asked: list[Parts], more: str, dice: random.Random) -> None:
    lines = [respelled(parts, dice) for parts in asked]

    assert key_of("\n".join(lines)) != key_of("\n".join([*lines, more]))


# Whatever a format could take for the end of a field.
PIECES = ["", "a", "b", "\n", ",", '"', "'", "[", "]", "{", "}", ":", ";", "\\", "\0", "\t",
          '","', '"],["', "null", "\u2028", "\ud800", "é", "e\u0301", PYPI]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=3).map("".join)
LISTS = st.lists(TEXTS, unique=True, max_size=3).map(tuple)
PLACES = st.builds(Requirement, TEXTS, TEXTS, LISTS, TEXTS)
SETS = st.lists(PLACES, unique=True, max_size=3).map(tuple)
SPECS = st.builds(
    Spec,
    manager=TEXTS,
    python=st.builds(Python, TEXTS, TEXTS, TEXTS, TEXTS, TEXTS),
    build=SETS,
    requirements=SETS,
    constraints=SETS,
    build_constraints=LISTS,
    indexes=st.builds(Indexes, LISTS, LISTS, st.booleans(), st.booleans()),
    only_binary=LISTS,
    no_binary=LISTS,
    prereleases=st.booleans(),
    as_of=TEXTS,
    closed=st.booleans(),
)
FOUND = st.builds(
    Dependencies,
    python=st.none() | TEXTS,
    build=SETS,
    asked=st.builds(
        Requirements,
        SETS,
        SETS,
        st.builds(Options, TEXTS, LISTS, LISTS, st.booleans(), st.booleans(), LISTS, LISTS),
    ),
    notes=st.just(()),
    day=st.none() | st.sampled_from(["2024-02-01", "2024-02-29", "2024-03-01"]),
    build_constraints=LISTS,
    only_binary=LISTS,
    closed=st.booleans(),
)


@quick
@given(SPECS)
def test_a_canonical_document_makes_the_spec_it_was_made_of(spec: Spec) -> None:
    again = from_canonical(spec.canonical())

    assert again == spec
    assert again.key == spec.key
    assert spec.canonical().isascii()
    assert "\n" not in spec.canonical()


def moved(spec: Spec, dice: random.Random) -> Spec:
    """Move the border between two fields: the texts in them, one after the other, stay."""
    lists = ["build_constraints", "only_binary", "no_binary"]
    groups = ["build", "requirements", "constraints"]
    one, other = dice.sample(dice.choice([lists, groups]), 2)
    first, second = getattr(spec, one), getattr(spec, other)
    kind = dice.randrange(4)
    if kind == 0:
        return replace(spec, **{one: first[:-1], other: (*first[-1:], *second)})
    if kind == 1 and one in lists:
        return replace(spec, **{one: (dice.choice(["\n", ",", '","']).join(first),)})
    if kind == 2 and one in groups and first:
        last = first[-1]
        border = dice.randrange(len(last.name + last.text) + 1)
        both = last.name + last.text
        last = replace(last, name=both[:border], text=both[border:])
        return replace(spec, **{one: (*first[:-1], last)})
    indexes = spec.indexes
    links = indexes.urls[-1:] + indexes.find_links
    return replace(spec, indexes=replace(indexes, urls=indexes.urls[:-1], find_links=links))


@quick
@given(SPECS, SPECS, st.randoms(use_true_random=False))
def test_no_border_between_fields_can_be_moved(
    spec: Spec, other: Spec, dice: random.Random
) -> None:
    for changed in (other, *(moved(spec, dice) for _ in range(10))):
        assert (changed.canonical() == spec.canonical()) == (changed == spec)
        assert (changed.key == spec.key) == (changed == spec)


def normal(found: Dependencies) -> tuple[object, ...]:
    """Return what *found* means: sets where order says nothing, lists where it does."""
    asked, options = found.asked, found.asked.options
    urls = tuple(dict.fromkeys((options.index_url or PYPI, *options.extra_index_urls)))
    return (
        frozenset(found.build),
        frozenset(asked.requirements),
        frozenset(asked.constraints),
        frozenset(found.build_constraints),
        urls,
        options.find_links,
        options.no_index,
        options.prereleases,
        frozenset((*options.only_binary, *found.only_binary)),
        frozenset(options.no_binary),
        (found.day or "")[:7],
        found.closed,
    )


def shuffled(found: Dependencies, dice: random.Random) -> Dependencies:
    """Change what means nothing: order, repetition, the day, the Python that was asked for."""

    def again(values: tuple[Requirement, ...]) -> tuple[Requirement, ...]:
        return tuple(dice.sample([*values, *values[:1]], len([*values, *values[:1]])))

    asked = replace(
        found.asked,
        requirements=again(found.asked.requirements),
        constraints=again(found.asked.constraints),
    )
    day = found.day and f"{found.day[:7]}-11"
    return replace(found, build=again(found.build), asked=asked, day=day, python="3")


@quick
@given(FOUND, FOUND, st.randoms(use_true_random=False))
def test_what_means_the_same_and_nothing_else_has_one_document(
    one: Dependencies, other: Dependencies, dice: random.Random
) -> None:
    document = of(one, PYTHON, Index()).canonical()
    options = one.asked.options
    swapped = replace(one, build=one.asked.constraints,
                      asked=replace(one.asked, constraints=one.build))  # fmt: skip
    turned = replace(options, find_links=options.find_links[::-1])
    linked = replace(options, find_links=options.extra_index_urls, extra_index_urls=())
    named = replace(options, only_binary=options.no_binary, no_binary=options.only_binary)
    changed = [replace(one, asked=replace(one.asked, options=new))
               for new in (turned, linked, named)]  # fmt: skip

    assert of(shuffled(one, dice), PYTHON, Index()).canonical() == document
    changed += [replace(one, day="2024-03-07"), replace(one, closed=not one.closed)]
    for found in (other, swapped, *changed):
        is_same = of(found, PYTHON, Index()).canonical() == document
        assert is_same == (normal(found) == normal(one))


def test_every_field_is_in_the_document() -> None:
    asked = Requirements((Requirement("six", "six"),))
    document = json.loads(of(Dependencies(None, (), asked, ()), PYTHON, Index()).canonical())

    assert document.keys() == {"v", *(one.name for one in fields(Spec))}
    assert document["python"].keys() == {one.name for one in fields(Python)}
    assert document["indexes"].keys() == {one.name for one in fields(Indexes)}
    assert document["requirements"][0].keys() == {one.name for one in fields(Requirement)}


PRINT = """
import sys
from pathlib import Path
from tests.test_keys import OTHER, SAME

for number, (one, _) in enumerate([*SAME.values(), *OTHER.values()][::8]):
    print(one.spec(Path(sys.argv[1], str(number))).canonical())
"""


@pytest.mark.parametrize("seed", ["1", "2"])
def test_the_canonical_document_is_the_same_in_another_process(tmp_path: Path, seed: str) -> None:
    said = subprocess.run(
        [sys.executable, "-c", PRINT, tmp_path / "there"],
        env={"PYTHONHASHSEED": seed, "PATH": os.defpath},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        check=True,
        text=True,
    )

    rows = [*SAME.values(), *OTHER.values()][::8]
    here = [one.spec(tmp_path / str(number)).canonical() for number, (one, _) in enumerate(rows)]
    assert said.stdout.splitlines() == here
