"""Which models share a spec_key, and which must not: by name, one difference each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.keys import PYTHON, PYTHON_ENV, Asked

SIX = Asked("six==1.17.0\n")
PAIR = Asked("six==1.17.0\nnumpy>=1,<2\n")
WHEEL = "own-1.0-py3-none-any.whl"
WHEELS = {WHEEL: "the wheel", f"wheels/{WHEEL}": "the wheel"}
TREE = {"pkg/pyproject.toml": "[project]\nname = 'own'", "pkg/own.py": "x = 1"}
INDEX = "six\n-i https://host/simple\n"
GIT = "own @ git+https://host/own"
URL = f"https://host/{WHEEL}"
PYLOCK = """\
lock-version = "1.0"
[[packages]]
name = "six"
version = "1.17.0"
[[packages.wheels]]
url = "https://files.pythonhosted.org/six-1.17.0-py2.py3-none-any.whl"
hashes = {sha256 = "HASH"}
"""
CONDA = "channels: [{}]\ndependencies: [python=3.11, pip, {}]\n"


def conda(*entries: str, channel: str = "defaults", requirements: str | None = None) -> Asked:
    files = {"conda.yaml": CONDA.format(channel, ", ".join(entries))}
    return Asked(requirements, files, python_env="")


def locked(requirements: str, *, digit: str = "a", comment: str = "") -> Asked:
    lock = comment + PYLOCK.replace("HASH", digit * 64)
    return Asked(requirements, {"pylock.toml": lock})


def settings(asked: Asked, **values: str) -> Asked:
    return replace(asked, settings=values)


SAME = {
    "a comment": (PAIR, Asked("# why\nsix==1.17.0  # because\nnumpy>=1,<2\n#\n")),
    "empty lines and indentation": (PAIR, Asked("\n\n  six==1.17.0\t\n\n numpy>=1,<2")),
    "the order of lines": (PAIR, Asked("numpy>=1,<2\nsix==1.17.0\n")),
    "a line twice": (PAIR, Asked("six==1.17.0\nnumpy>=1,<2\nsix==1.17.0\n")),
    "a line twice in two spellings": (SIX, Asked("six==1.17.0\nSix == 1.17\n")),
    "the case of a name": (SIX, Asked("SiX==1.17.0")),
    "underscore for hyphen in a name": (Asked("a-b"), Asked("a_b")),
    "dot for hyphen in a name": (Asked("a-b"), Asked("A.B")),
    "several separators in a name": (Asked("a-b-c"), Asked("a__b-._c")),
    "blanks around an operator": (SIX, Asked("six  ==  1.17.0")),
    "parentheses around specifiers": (PAIR, Asked("six(==1.17.0)\nnumpy (>=1,<2)")),
    "zeros at the end of a version": (Asked("six==1"), Asked("six==1.0.0")),
    "zeros at the end of a bound": (Asked("six>=1,<2"), Asked("six>=1.0,<2.0.0")),
    "a `v` before a version": (SIX, Asked("six==v1.17.0")),
    "the spelling of a prerelease": (Asked("six==1.0rc1"), Asked("six==1.0-RC.1")),
    "the spelling of a post-release": (Asked("six==1.0.post1"), Asked("six==1.0-1")),
    "the case of a local version": (Asked("torch==1.0+cpu"), Asked("torch==1.0+CPU")),
    "a wildcard after `>=`": (Asked("six>=1"), Asked("six>=1.*")),
    "the order of specifiers": (Asked("six>=1,!=1.5,<2"), Asked("six<2, >=1, !=1.5")),
    "a specifier twice": (Asked("six>=1"), Asked("six>=1,>=1.0")),
    "the order of extras": (Asked("six[a,b]"), Asked("six[b, a]")),
    "the case and separators of extras": (Asked("six[a-b]"), Asked("six[A_B]")),
    "an extra twice": (Asked("six[a]"), Asked("six[a,A]")),
    "empty extras": (Asked("six"), Asked("six[]")),
    "quotes in a marker": (Asked("six; os_name == 'a'"), Asked('six; os_name == "a"')),
    "blanks in a marker": (Asked("six; os_name == 'a'"), Asked("six;os_name=='a'")),
    "parentheses around a marker": (Asked("six; os_name == 'a'"), Asked("six; (os_name == 'a')")),
    "Windows line ends": (PAIR, Asked(b"six==1.17.0\r\nnumpy>=1,<2\r\n")),
    "a byte order mark": (PAIR, Asked(b"\xef\xbb\xbfsix==1.17.0\nnumpy>=1,<2")),
    "a line continued": (PAIR, Asked("six \\\n  ==1.17.0\nnumpy>=1,\\\n<2")),
    "a file included": (PAIR, Asked("-r more.txt\nsix==1.17.0", {"more.txt": "numpy>=1,<2"})),
    "the name of a file included": (
        Asked("-r a.txt", {"a.txt": "six"}), Asked("--requirement=b/c.txt", {"b/c.txt": "six"}),
    ),
    "a file included twice": (
        Asked("-r a.txt", {"a.txt": "six"}), Asked("-r a.txt\n-r a.txt", {"a.txt": "six"}),
    ),
    "the name of a file of constraints": (
        Asked("six\n-c a.txt", {"a.txt": "six<2"}), Asked("-c b.txt\nsix", {"b.txt": "Six < 2.0"}),
    ),
    "the order and case of hashes": (
        Asked("six==1 --hash=sha256:aa --hash=sha256:bb"),
        Asked("six==1 \\\n  --hash sha256:BB \\\n  --hash=sha256:aa --hash=sha256:aa"),
    ),
    "requirements in python_env.yaml itself": (
        PAIR, Asked(None, python_env="python: '3.11.7'\nbuild_dependencies:\n- pip\n"
                    "dependencies:\n- numpy>=1,<2  # why\n- 'six == 1.17'\n"),
    ),
    "conda.yaml instead of python_env.yaml": (
        SIX, conda(requirements="six==1.17.0"),
    ),
    "the pip section of conda.yaml": (SIX, conda("{pip: [six==1.17.0]}")),
    "a conda package for its PyPI one": (SIX, conda("six==1.17")),
    "a build string of conda": (SIX, conda("six=1.17.0=py311_0")),
    "defaults and conda-forge": (conda("six"), conda("six", channel="conda-forge")),
    "conda packages that are no Python packages": (conda("six"), conda("six", "openssl=3")),
    "files that are not read": (SIX, Asked("six==1.17.0", {"model.pkl": "x", "README": "y"})),
    "the slash at the end of an index": (Asked(INDEX), Asked("six\n-i https://host/simple/")),
    "the case of an index's host": (Asked(INDEX), Asked("six\n-i HTTPS://HOST/simple")),
    "credentials of an index": (Asked(INDEX), Asked("six\n-i https://me:pw@host/simple")),
    "the spelling of an option": (Asked(INDEX), Asked("--index-url=https://host/simple\nsix")),
    "an index of the settings": (
        Asked(INDEX), settings(Asked("six"), INDEX__URLS="https://me:pw@HOST/simple/"),
    ),
    "PyPI named as the index": (Asked("six"), Asked("six\n-i https://pypi.org/simple")),
    "PyPI by its old name": (Asked("six"), Asked("six\n--index-url http://pypi.python.org/simple/")),
    "PyPI named as another index": (
        Asked("six"), Asked("six\n--extra-index-url https://pypi.org/simple/"),
    ),
    "PyPI in the settings": (
        Asked("six"), settings(Asked("six"), INDEX__URLS="https://PyPI.org/simple/"),
    ),
    "PyPI named beside another index": (
        Asked("six\n--extra-index-url https://host/simple"),
        Asked("six\n-i https://pypi.org/simple\n--extra-index-url https://host/simple"),
    ),
    "an index twice": (Asked(INDEX), Asked(INDEX + "--extra-index-url https://host/simple/")),
    "options that change nothing": (SIX, Asked("six==1.17.0\n--prefer-binary\n--require-hashes")),
    "names after --no-binary": (
        Asked("--no-binary A_b,c"), Asked("--no-binary c\n--no-binary a-b"),
    ),
    "a wheel of the model without `./`": (Asked(f"./{WHEEL}", WHEELS), Asked(WHEEL, WHEELS)),
    "a wheel of the model by a detour": (
        Asked(f"./{WHEEL}", WHEELS), Asked(f"wheels/../{WHEEL}", WHEELS),
    ),
    "a wheel of the model by its name": (
        Asked(f"./{WHEEL}", WHEELS), Asked(f"Own @ ./{WHEEL}", WHEELS),
    ),
    "a wheel of the model by a URL": (
        Asked(f"./{WHEEL}", WHEELS), Asked(f"own @ file://{{model}}/{WHEEL}", WHEELS),
    ),
    "a wheel of the model with its own hash": (
        Asked(f"./{WHEEL}", {WHEEL: ""}),
        Asked(f"./{WHEEL} --hash=sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b"
              "7852b855", {WHEEL: ""}),
    ),
    "-e of a source tree": (Asked("./pkg", TREE), Asked("-e ./pkg/", TREE)),
    "caches in a source tree": (
        Asked("./pkg", TREE), Asked("./pkg", {**TREE, "pkg/__pycache__/own.pyc": b"\0"}),
    ),
    "files beside a source tree": (Asked("./pkg", TREE), Asked("./pkg", {**TREE, "a.py": ""})),
    "`NAME @` before a wheel's URL": (Asked(URL), Asked(f"own@ {URL}")),
    "the hash of a URL as an option": (
        Asked(f"{URL}#sha256=aa"), Asked(f"{URL} --hash=sha256:AA"),
    ),
    "egg for a name": (Asked(GIT), Asked("git+https://HOST/own#egg=Own")),
    "egg with extras": (
        Asked("own[a] @ git+https://host/own#subdirectory=b"),
        Asked("-e git+https://host/own#egg=own[a]&subdirectory=b"),
    ),
    "another day of the month": (SIX, replace(SIX, logged="2024-02-01")),
    "a year of two digits": (SIX, replace(SIX, logged="24-02-29 00:00:00")),
    "the day where it does not matter": (
        settings(SIX, RESOLVE__AS_OF="now"),
        settings(replace(SIX, logged="2021-01-01"), RESOLVE__AS_OF="now"),
    ),
    "an override that changes nothing": (SIX, replace(SIX, override=("Six == 1.17",))),
    "an override for what the model says itself": (
        Asked("six==1.16.0"), replace(SIX, override=("six==1.16.0",)),
    ),
    "the order of overrides": (
        replace(PAIR, override=("six", "numpy")), replace(PAIR, override=("numpy", "six")),
    ),
    "another Python asked for, the same found": (
        SIX, replace(SIX, python_env=PYTHON_ENV.replace("3.11.7", "'>=3.11'")),
    ),
    "the order of build dependencies": (
        replace(SIX, python_env=PYTHON_ENV.replace("[pip]", "[pip, wheel]")),
        replace(SIX, python_env=PYTHON_ENV.replace("[pip]", "[Wheel, pip, pip]")),
    ),
    "an option in either list": (
        Asked(INDEX),
        Asked("six", python_env=PYTHON_ENV.replace("[pip]", "[pip, '-i https://host/simple']")),
    ),
    "a comment in the model's lock": (locked("six"), locked("six", comment="# why\n")),
    "what its lock decides": (locked("six"), locked("six>=1,<2")),
    "the profile": (SIX, settings(SIX, SECURITY__PROFILE="strict")),
    "being offline": (SIX, settings(SIX, INDEX__OFFLINE="true")),
}  # fmt: skip

OTHER = {
    "another name": (SIX, Asked("sax==1.17.0")),
    "another version": (SIX, Asked("six==1.16.0")),
    "one requirement more": (SIX, PAIR),
    "nothing and something": (Asked(""), SIX),
    "no version": (SIX, Asked("six")),
    "a bound for a pin": (SIX, Asked("six>=1.17.0")),
    "`===` and `==`": (Asked("six==1"), Asked("six===1")),
    "two spellings after `===`": (Asked("six===1.0"), Asked("six===1.0.0")),
    "`~=1.4` and `~=1.4.0`": (Asked("six~=1.4"), Asked("six~=1.4.0")),
    "`1.*` and `1.0.*`": (Asked("six==1.*"), Asked("six==1.0.*")),
    "`1` and `1.*`": (Asked("six==1"), Asked("six==1.*")),
    "an epoch": (Asked("six==1.0"), Asked("six==1!1.0")),
    "a local version": (Asked("torch==1.0"), Asked("torch==1.0+cpu")),
    "an extra": (SIX, Asked("six[a]==1.17.0")),
    "another extra": (Asked("six[a]"), Asked("six[a,b]")),
    "one extra of two names": (Asked("six[a,b]"), Asked("six[a-b]")),
    "a marker": (SIX, Asked("six==1.17.0; os_name == 'posix'")),
    "another marker": (Asked("six; os_name == 'a'"), Asked("six; os_name == 'b'")),
    "and for or": (
        Asked("six; os_name == 'a' and os_name == 'b'"),
        Asked("six; os_name == 'a' or os_name == 'b'"),
    ),
    "quotes in the text of a marker": (
        Asked("six; os_name == 'a\" or os_name == \"b'"),
        Asked("six; os_name == 'a' or os_name == 'b'"),
    ),
    "a hash": (SIX, Asked("six==1.17.0 --hash=sha256:aa")),
    "another hash": (Asked("six==1 --hash=sha256:aa"), Asked("six==1 --hash=sha256:ab")),
    "the versions of two changed about": (Asked("six==1\nsax==2"), Asked("six==2\nsax==1")),
    "a constraint for a requirement": (
        Asked("numpy\n-c a.txt", {"a.txt": "pandas<2"}), Asked("numpy\npandas<2"),
    ),
    "a constraint more": (SIX, Asked("six==1.17.0\n-c a.txt", {"a.txt": "numpy<2"})),
    "the content of a file of constraints": (
        Asked("six\n-c a.txt", {"a.txt": "six<2"}), Asked("six\n-c a.txt", {"a.txt": "six<3"}),
    ),
    "the content of a file included": (
        Asked("-r a.txt", {"a.txt": "six<2"}), Asked("-r a.txt", {"a.txt": "six<3"}),
    ),
    "one build dependency more": (
        SIX, replace(SIX, python_env=PYTHON_ENV.replace("[pip]", "[pip, wheel]")),
    ),
    "a build dependency for a requirement": (
        Asked("wheel"), Asked("", python_env=PYTHON_ENV.replace("[pip]", "[pip, wheel]")),
    ),
    "an index": (Asked("six"), Asked(INDEX)),
    "an index of the settings": (Asked("six"), settings(Asked("six"), INDEX__URLS="https://a/")),
    "the path of an index": (Asked(INDEX), Asked("six\n-i https://host/Simple")),
    "http for https": (Asked(INDEX), Asked("six\n-i http://host/simple")),
    "an index more": (Asked(INDEX), Asked(INDEX + "--extra-index-url https://other/simple")),
    "an index beside PyPI or in its place": (
        Asked(INDEX), Asked("six\n--extra-index-url https://host/simple"),
    ),
    "PyPI beside an index": (
        Asked(INDEX), Asked(INDEX + "--extra-index-url https://pypi.org/simple"),
    ),
    "PyPI in the place of an index": (Asked(INDEX), Asked(INDEX + "-i https://pypi.org/simple")),
    "the order of indexes": (
        Asked("--extra-index-url https://a\n--extra-index-url https://b"),
        Asked("--extra-index-url https://b\n--extra-index-url https://a"),
    ),
    "the order of indexes in the settings": (
        settings(SIX, INDEX__URLS="https://a,https://b"),
        settings(SIX, INDEX__URLS="https://b,https://a"),
    ),
    "asking every index and the first that has it": (
        settings(SIX, INDEX__URLS="https://a,https://b"),
        Asked("six==1.17.0\n-i https://a\n--extra-index-url https://b"),
    ),
    "an index and a page of links": (Asked(INDEX), Asked("six\n-f https://host/simple")),
    "links of the settings": (SIX, settings(SIX, INDEX__FIND_LINKS="/wheels")),
    "the links of a directory": (SIX, Asked("six==1.17.0\n-f wheels", WHEELS)),
    "a wheel in a directory of links": (
        Asked("six\n-f wheels", WHEELS),
        Asked("six\n-f wheels", {f"wheels/{WHEEL}": "changed"}),
    ),
    "--no-index": (SIX, Asked("six==1.17.0\n--no-index")),
    "--pre": (SIX, Asked("six==1.17.0\n--pre")),
    "--no-binary": (SIX, Asked("six==1.17.0\n--no-binary six")),
    "--only-binary": (SIX, Asked("six==1.17.0\n--only-binary six")),
    "--only-binary and --no-binary": (Asked("--only-binary six"), Asked("--no-binary six")),
    "the bytes of a wheel of the model": (
        Asked(f"./{WHEEL}", WHEELS), Asked(f"./{WHEEL}", {WHEEL: "changed"}),
    ),
    "a wheel of the model for one of an index": (Asked(f"./{WHEEL}", WHEELS), Asked("own==1.0")),
    "a file of a source tree": (
        Asked("./pkg", TREE), Asked("./pkg", {**TREE, "pkg/own.py": "x = 2"}),
    ),
    "a file more in a source tree": (
        Asked("./pkg", TREE), Asked("./pkg", {**TREE, "pkg/more.py": ""}),
    ),
    "the name of a file in a source tree": (
        Asked("./pkg", {"pkg/a": "x", "pkg/b": "x"}), Asked("./pkg", {"pkg/a": "x", "pkg/c": "x"}),
    ),
    "where one file of a source tree ends": (
        Asked("./pkg", {"pkg/a": "x", "pkg/b": "y"}), Asked("./pkg", {"pkg/a": "xb", "pkg/by": ""}),
    ),
    "a file -e leads to": (
        Asked("-e ./pkg", TREE), Asked("-e ./pkg", {**TREE, "pkg/own.py": "x = 2"}),
    ),
    "an extra of a source tree": (Asked("./pkg", TREE), Asked("./pkg[a]", TREE)),
    "the URL of a wheel": (Asked(URL), Asked(URL.replace("host", "other"))),
    "the hash of a URL": (Asked(URL), Asked(f"{URL}#sha256=aa")),
    "a URL for an index": (Asked("own"), Asked(URL)),
    "a repository": (Asked(GIT), Asked(GIT + "2")),
    "a revision": (Asked(GIT), Asked(GIT + "@main")),
    "another revision": (Asked(GIT + "@v1"), Asked(GIT + "@V1")),
    "a subdirectory": (Asked(GIT), Asked(GIT + "#subdirectory=a")),
    "another subdirectory": (Asked(GIT + "#subdirectory=a"), Asked(GIT + "#subdirectory=b")),
    "the extras of an egg": (
        Asked("git+https://host/own#egg=own&subdirectory=b"),
        Asked("git+https://host/own#egg=own[a]&subdirectory=b"),
    ),
    "a user of ssh": (Asked("git+ssh://a@host/own"), Asked("git+ssh://b@host/own")),
    "another month": (SIX, replace(SIX, logged="2024-03-14")),
    "the same month of another year": (SIX, replace(SIX, logged="2023-02-14")),
    "no date": (SIX, replace(SIX, logged="")),
    "today instead of the month": (SIX, settings(SIX, RESOLVE__AS_OF="now")),
    "an override": (SIX, replace(SIX, override=("six==1.16.0",))),
    "an override of what is not asked for": (SIX, replace(SIX, override=("numpy==1.26",))),
    "an override of a constraint": (
        Asked("six\n-c a.txt", {"a.txt": "numpy<2"}),
        Asked("six\n-c a.txt", {"a.txt": "numpy<2"}, override=("numpy",)),
    ),
    "an override that looks like two": (
        replace(SIX, override=("a", "b")), replace(SIX, override=("a-b",)),
    ),
    "an override by a URL": (Asked("own"), Asked("own", override=(f"own @ {URL}",))),
    "another patch release": (SIX, replace(SIX, python=replace(PYTHON, version="3.11.8"))),
    "another implementation": (SIX, replace(SIX, python=replace(PYTHON, implementation="pypy"))),
    "another ABI": (SIX, replace(SIX, python=replace(PYTHON, abi="cpython-311d-x86_64-linux-gnu"))),
    "another platform": (SIX, replace(SIX, python=replace(PYTHON, platform="linux-aarch64"))),
    "another libc": (SIX, replace(SIX, python=replace(PYTHON, libc="musl-1.2"))),
    "a repair left out": (
        Asked("mlflow==2.9.2"), settings(Asked("mlflow==2.9.2"), RESOLVE__REPAIR="false"),
    ),
    "a lock in the model": (SIX, locked("six==1.17.0")),
    "a hash in the model's lock": (locked("six"), locked("six", digit="b")),
    "the month of a model with a lock": (
        locked("six"), replace(locked("six"), logged="2021-01-01"),
    ),
    "an override of the model's lock": (
        locked("six"), replace(locked("six"), override=("six==1.16.0",)),
    ),
    "a version of conda": (conda("six=1.17"), conda("six=1.16")),
    "`=` and `==` of conda": (conda("six=1.17"), conda("six==1.17")),
    "a conda package beside requirements.txt": (
        conda("six", "numpy"), conda("six", "numpy", requirements="six"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_what_differs_only_in_this_shares_the_key(tmp_path: Path, one: Asked, other: Asked) -> None:
    first, second = one.spec(tmp_path / "one"), other.spec(tmp_path / "other")

    assert one != other
    assert first == second
    assert first.key == second.key


@pytest.mark.parametrize(("one", "other"), OTHER.values(), ids=OTHER)
def test_what_differs_in_this_has_another_key(tmp_path: Path, one: Asked, other: Asked) -> None:
    first, second = one.spec(tmp_path / "one"), other.spec(tmp_path / "other")

    assert first != second
    assert first.key != second.key
