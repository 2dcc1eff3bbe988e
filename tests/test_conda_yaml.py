"""What is read from a conda.yaml, for whichever manager."""

from __future__ import annotations

from pathlib import Path

import pytest

from envd.errors import ModelInvalidError
from envd.model.documents import line_of
from envd.settings.sections import Security
from envd.spec import conda_yaml, policy
from envd.spec.conda_yaml import CondaYaml, judged
from envd.spec.place import Place

MODELS = Path(__file__).parent / "models"
EVERYTHING = """\
name: an-env
channels:
- conda-forge
- https://me:s3cret@host/mine/
- nodefaults
dependencies:
- python=3.9
- pip<=23
- mine::six [version='>=1', build=py_0]
- pip:
  - mlflow==2.9.2
  - -r requirements.txt
- numpy 1.26 py39_0
- pip: [scipy]
variables:
  A: text
  B_2: 3.10
prefix: /home/me/miniconda3/envs/an-env
category: main
"""


def read(folder: Path, text: str) -> CondaYaml:
    (folder / "conda.yaml").write_text(text)
    return conda_yaml.read(folder, "conda.yaml")


def test_everything_that_counts_is_read_in_its_order(tmp_path: Path) -> None:
    found = read(tmp_path, EVERYTHING)

    assert [(place.line, one.name) for place, one in found.channels] == [
        (3, "conda-forge"),
        (4, "https://host/mine"),
        (5, "nodefaults"),
    ]
    assert [(place.line, one.text) for place, one in found.packages] == [
        (7, "python 3.9.*"),
        (8, "pip <=23"),
        (9, "mine::six >=1[build='py_0']"),
        (13, "numpy ==1.26[build='py39_0']"),
    ]
    assert found.pip == ("mlflow==2.9.2", "-r requirements.txt", "scipy")
    assert [line_of(one) for one in found.pip] == [11, 12, 14]
    assert found.variables == (("A", "text"), ("B_2", "3.10"))
    assert found.place == Place(tmp_path, "conda.yaml", 1)


def test_a_secret_is_not_kept(tmp_path: Path) -> None:
    found = read(tmp_path, EVERYTHING)

    assert found.channels[1][1].had_secret
    assert "s3cret" not in repr(found)


def test_a_channel_is_where_it_is_named_first(tmp_path: Path) -> None:
    found = read(tmp_path, "channels: [a]\ndependencies:\n- b::six\n- a::numpy\n- b::scipy\n")

    places = [(one.name, place.line) for one, place in found.places().items()]
    assert places == [("a", 1), ("b", 3)]


@pytest.mark.parametrize("name", sorted(path.name for path in MODELS.iterdir() if path.is_dir()))
def test_what_mlflow_wrote_is_read(name: str) -> None:
    found = conda_yaml.read(MODELS / name, "conda.yaml")

    assert any(one.name == "python" for _, one in found.packages)
    assert any(line.startswith("mlflow") for line in found.pip)


@pytest.mark.parametrize(
    "text",
    ["name: a\n", "dependencies:\n", "dependencies: []\n", "channels:\nvariables:\nprefix:\n",
     "channels: []\nvariables: {}\n", "dependencies: [{pip: }]\n", "dependencies: [pip: []]\n"],
)  # fmt: skip
def test_a_file_may_name_nothing(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == CondaYaml(Place(tmp_path, "conda.yaml", 1))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("dependencies: six", "`dependencies` is not a list"),
        ("dependencies: {pip: [six]}", "`dependencies` is not a list"),
        ("dependencies: [[six]]", "neither a text nor `pip:`"),
        ("dependencies: [{pip: six}]", "neither a text nor `pip:`"),
        ("dependencies: [{pip: [{six: 1}]}]", "neither a text nor `pip:`"),
        ("dependencies: [{pip: [null]}]", "neither a text nor `pip:`"),
        ("dependencies: [{npm: [six]}]", "neither a text nor `pip:`"),
        ("dependencies: [{pip: [six], npm: [six]}]", "neither a text nor `pip:`"),
        ("dependencies: [null]", "neither a text nor `pip:`"),
        ("dependencies: [{}]", "neither a text nor `pip:`"),
        ("dependencies:\n- six\n- 'six: six'", "line 3: `six: six` is not a conda package: "),
        ("dependencies: ['numpy[license=MIT]']", "`license` is none of what may stand"),
        ("dependencies:\n- six # [linux]", r"line 2: selectors \(`# \[linux\]`\)"),
        ("dependencies:\n- six  # but [not win]", "line 2: selectors"),
        ("channels:\n- defaults # [win]\ndependencies: []", "line 2: selectors"),
        ("dependencies:\n- six\n- sel(linux): numpy", r"line 3: the selector `sel\(linux\)`"),
        ("dependencies:\n- if: linux\n  then: [numpy]", "line 2: the selector `if`"),
        ("channels: defaults", "`channels` is not a list"),
        ("channels: {a: b}", "`channels` is not a list"),
        ("channels: [null]", "`channels` is not a list of texts"),
        ("channels: [[defaults]]", "`channels` is not a list of texts"),
        ("variables: [A]", "`variables` is not a mapping"),
        ("variables:\n  A: 1\n  B C: 2", "line 3: `B C` of `variables`"),
        ("variables: {A=s3cret: 1}", "`A` of `variables`"),
        (f"variables: {{{', '.join(f'V{n}: 1' for n in range(101))}}}", "has over 100 of them"),
        ("variables: {A: [1]}", "`A` of `variables`"),
        ("variables: {A: null}", "`A` of `variables`"),
        ('variables: {A: "a\\0b"}', "`A` of `variables`"),
    ],
)
def test_odd_entries_are_refused(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ModelInvalidError, match=why) as caught:
        read(tmp_path, f"{text}\n")

    assert caught.value.metadata["path"] == "conda.yaml"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("channels:\n- a\n- b, c", "line 3: `b, c` is not a conda channel: it is no name"),
        ("channels: [./here]", "`./here` is not a conda channel: it is a relative path"),
        ("channels: ['']", "`` is not a conda channel"),
    ],
)
def test_a_channel_that_is_none_is_refused_where_packages_come_from_it(
    tmp_path: Path, text: str, why: str
) -> None:
    found = read(tmp_path, f"{text}\n")

    with pytest.raises(ModelInvalidError, match=why):
        judged(found, policy.of(Security(), {}))


@pytest.mark.parametrize(
    "line",
    ["# - six # [linux]", "- six  # see [1]", "- six # [windows users, see below]", "- six #[2]"],
)
def test_a_comment_that_is_no_selector_is_passed_over(tmp_path: Path, line: str) -> None:
    found = read(tmp_path, f"dependencies:\n{line}\n- numpy\n")

    assert found.packages[-1][1].name == "numpy"


@pytest.mark.parametrize(
    "text",
    ["channels: ['https://me:s3cret@host/a?b']", "channels: ['https://host/t/s3cret/a?b']",
     "dependencies: ['https://me:s3cret@host/a::six;']",
     "dependencies: ['https://host/t/s3cret/a::six;']"],
)  # fmt: skip
def test_a_refusal_repeats_no_secret(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelInvalidError) as caught:
        judged(read(tmp_path, text), policy.of(Security(), {}))

    assert "s3cret" not in f"{caught.value.message} {caught.value.metadata}"


def test_an_entry_of_a_hundred_thousand_letters_is_refused_at_once(tmp_path: Path) -> None:
    for entry in ("a" * 100_000, "x:" * 50_000 + "::numpy", "numpy[" * 20_000, "=" * 100_000):
        with pytest.raises(ModelInvalidError, match="it is very long"):
            read(tmp_path, f"dependencies: ['{entry}']")
