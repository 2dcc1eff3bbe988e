"""Requirements a caller puts in the place of a model's own, for one call."""

from __future__ import annotations

from pathlib import Path

import pytest

from envd.errors import EnvdError, PolicyDeniedError, RequestInvalidError
from envd.settings.sections import Security
from envd.spec import Requirement, overrides
from envd.spec.policy import Policy
from tests.keys import Asked

WHEEL = "own-1.0-py3-none-any.whl"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("six==1.17.0", ["six==1.17.0"]),
        ("six>=1,<2,numpy==1.0", ["six>=1,<2", "numpy==1.0"]),
        ("six >= 1 , < 2 , numpy", ["six >= 1 , < 2", "numpy"]),
        ("six[a,b]==1,numpy[c],scipy", ["six[a,b]==1", "numpy[c]", "scipy"]),
        ("six,numpy, ", ["six", "numpy"]),
        ("six, 7z", ["six", "7z"]),
        ("six!=1,!=2,~=1.0,===3,numpy", ["six!=1,!=2,~=1.0,===3", "numpy"]),
        ("own @ https://host/a,b.whl", ["own @ https://host/a,b.whl"]),
        ("six; os_name in 'a,b'", ["six; os_name in 'a,b'"]),
        ("", []),
        (" , ", []),
    ],
)
def test_a_list_of_overrides_is_split_between_requirements(text: str, expected: list[str]) -> None:
    assert overrides.split(text) == expected


def override(folder: Path, *texts: str, profile: str = "dev") -> tuple[Requirement, ...]:
    return overrides.read(folder, texts, Policy(profile, Security(), {}))


def refusal(folder: Path, *texts: str) -> EnvdError:
    with pytest.raises(EnvdError) as caught:
        override(folder, *texts)
    return caught.value


def test_overrides_are_requirements_in_their_order(tmp_path: Path) -> None:
    found = override(tmp_path, "Six == 1.0", "numpy[a]>=1,<2; os_name == 'a'", "six # why")

    assert [one.text for one in found] == ["six==1", 'numpy[a]<2,>=1; os_name == "a"', "six"]
    assert override(tmp_path) == ()


def test_an_override_by_a_url_is_judged(tmp_path: Path) -> None:
    (found,) = override(tmp_path, "own @ https://me:pw@a.org/own-1.0.tar.gz")

    assert found.source == "https://a.org/own-1.0.tar.gz"
    with pytest.raises(PolicyDeniedError, match=r"^override 2: the source `https://a\.org/"):
        override(tmp_path, "six", "own @ https://a.org/own-1.0.tar.gz", profile="standard")


@pytest.mark.parametrize(
    "text",
    ["", "  ", "# six", "-r more.txt", " -e .", "-i https://a.org", "--pre", "./pkg", "pkg/",
     f"{WHEEL}", f"own @ ./{WHEEL}", ".", "six\n-i https://a.org", "six\rnumpy", "six=1", "six six",
     "six,numpy", "git+https://a.org/own", "hg+https://a.org/own",
     "own @ file://{model}/missing-1.0.tar.gz", "own @ https://a.org/../own.whl"],
)  # fmt: skip
def test_what_is_no_override_is_the_callers_fault(tmp_path: Path, text: str) -> None:
    (tmp_path / WHEEL).touch()
    (tmp_path / "pkg").mkdir()
    (tmp_path / "more.txt").write_text("six")

    error = refusal(tmp_path, "numpy", text.replace("{model}", str(tmp_path)))

    assert isinstance(error, RequestInvalidError)
    assert error.message.startswith("override 2: ")


def test_a_thousand_overrides_are_enough(tmp_path: Path) -> None:
    assert len(override(tmp_path, *["six"] * 1000)) == 1000
    error = refusal(tmp_path, *["six"] * 1001)
    assert isinstance(error, RequestInvalidError)
    assert "there are over 1000 of them" in error.message


def test_an_override_takes_the_place_of_whatever_has_its_name(tmp_path: Path) -> None:
    model = Asked(
        "six==1.16.0\nnumpy\nsix; os_name == 'a'\n-c a.txt\n",
        {"a.txt": "six<2\nnumpy<2"},
        python_env="build_dependencies: [six, pip]\ndependencies: [-r requirements.txt]",
        override=("Six>=1.17", "scipy"),
    )

    spec = model.spec(tmp_path / "model")

    assert [one.text for one in spec.requirements] == ["numpy", "scipy", "six>=1.17"]
    assert [one.text for one in spec.constraints] == ["numpy<2"]
    assert [one.text for one in spec.build] == ["pip"]
