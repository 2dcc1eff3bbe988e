"""`envctl migrate`: conda-forge in the files of models, and nothing else touched in them."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envd.errors import EnvdError, ModelInvalidError, ModelNotFoundError
from envd.mend import migrating
from envd.spec import conda_forge, conda_yaml
from envd.spec.conda_yaml import CondaYaml
from tests import hostile
from tests.called import Called
from tests.conftest import MODELS, environment
from tests.test_channels import ANACONDAS, OTHERS
from tests.test_conda_forge import EXPORT, FORGED

B = "b_sklearn_mlflow1141_py37_defaults"
B3 = "b3_sklearn_mlflow180_py37_defaults_only"
MLMODEL = """\
flavors:
  python_function:
    env: conda.yaml
    loader_module: mlflow.sklearn
"""
DEFAULTS = "channels: [defaults]\ndependencies: [python=3.9.18]\n"


@pytest.fixture
def envctl(tmp_path: Path, home: Path) -> Called:
    return Called(tmp_path / "root", environment(tmp_path / "root", home))


def model(folder: Path, conda: str | bytes = DEFAULTS, mlmodel: str = MLMODEL) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "MLmodel").write_text(mlmodel)
    (folder / "conda.yaml").write_bytes(conda if isinstance(conda, bytes) else conda.encode())
    return folder


def migrated(folder: Path, conda: str, name: str = "conda.yaml") -> str:
    """Return what becomes of a conda.yaml, which says nothing new the second time."""
    migrating.carry_out(migrating.plan(model(folder, conda)))
    assert migrating.plan(folder) == migrating.Migration(folder)
    return (folder / name).read_bytes().decode()


def meaning(folder: Path, name: str = "conda.yaml") -> tuple[list[str], list[str]]:
    """Return the channels and the packages that envd takes from a conda.yaml."""
    found = conda_forge.rewritten(conda_yaml.read(folder, name), "rewrite")
    return [one.name for _, one in found.channels], [one.text for _, one in found.packages]


def read(folder: Path) -> CondaYaml:
    return conda_forge.rewritten(conda_yaml.read(folder, "conda.yaml"), "rewrite")


# Each as it is, and after `=>` as it becomes.
CHANGED = {
    "a list": """\
channels:
- defaults
=>
channels:
- conda-forge
""",
    "comments": """\
# ours
channels:  # where from
  # the first
  - defaults  # Anaconda's
  # the second
  - pytorch # theirs

# what
dependencies:
  - python=3.9 # old
=>
# ours
channels:  # where from
  # the first
  - conda-forge  # Anaconda's
  # the second
  - pytorch # theirs

# what
dependencies:
  - python=3.9 # old
""",
    "conda-forge right after it": """\
channels:
- defaults
- r
- 'conda-forge'  # the good one
=>
channels:
- 'conda-forge'  # the good one
""",
    "conda-forge far after it": """\
channels:
- defaults
- bioconda
- conda-forge
- free
- nvidia
=>
channels:
- conda-forge
- bioconda
- nvidia
""",
    "conda-forge before it": """\
channels:
- conda-forge/linux-64
- bioconda
# last
- defaults
=>
channels:
- conda-forge/linux-64
- bioconda
# last
""",
    "other channels twice, and nodefaults": """\
channels: [bioconda, defaults, nodefaults, bioconda]
=>
channels: [bioconda, conda-forge, nodefaults, bioconda]
""",
    "tabs": """\
channels:\t[defaults,\tr]\t# x
=>
channels:\t[conda-forge]\t# x
""",
    "quotes": """\
channels: ['defaults', "mine"]
dependencies:
- 'main::six=1.16=py_0'
- "r::a 1.2"
=>
channels: ['conda-forge', "mine"]
dependencies:
- 'conda-forge::six==1.16'
- "conda-forge::a==1.2"
""",
    "a flow list of which the first goes": """\
channels: [defaults, conda-forge]
=>
channels: [conda-forge]
""",
    "a flow list of which the last goes": """\
channels: [ conda-forge, bioconda , defaults ]
=>
channels: [ conda-forge, bioconda ]
""",
    "a flow list of which the middle goes": """\
channels: [conda-forge, bioconda, main, r, mine]
=>
channels: [conda-forge, bioconda, mine]
""",
    "a flow list of several lines": """\
channels: [
  defaults,  # old
  mine,  # ours
  conda-forge,  # new
]
=>
channels: [
  conda-forge,  # old
  mine,  # ours
  # new
]
""",
    "a flow list with comments everywhere": """\
channels: [ # where from
  # the first
  conda-forge,  # new
  # the second
  defaults, main,  # old
  mine  # ours
  # the last
  , r  # R
  # nothing more
] # end
=>
channels: [ # where from
  # the first
  conda-forge,  # new
  # the second
  # old
  mine  # ours
  # the last
  # R
  # nothing more
] # end
""",
    "a flow list of which the first goes with a comment": """\
channels: [defaults,  # old
           conda-forge,  # new
           'mine']
dependencies: ["main::a",# one
  b]
=>
channels: [  # old
           conda-forge,  # new
           'mine']
dependencies: ["conda-forge::a",# one
  b]
""",
    "a flow list of which the last goes with a comment": """\
channels:
- a
dependencies: [python=3.9, # the one
  'main::_libgcc_mutex=0.1=main', # odd
  "r::openssl=1=h2" # odder
  ] # end
=>
channels:
- a
dependencies: [python=3.9 # the one
  # odd
  # odder
  ] # end
""",
    "an empty list with a comment": """\
channels: [ # none
  ] # at all
=>
channels: [conda-forge  # none
  ] # at all
""",
    "comments beside entries that go": """\
channels:
  - conda-forge  # new
  - defaults  # old
  # R
  - r  #r
  - mine
=>
channels:
  - conda-forge  # new
  # old
  # R
  #r
  - mine
""",
    "comments beside blocks of text": """\
channels:
- >-  # one
  defaults
- a
- | # two
  r
- b
=>
channels:
- conda-forge  # one
- a
# two
- b
""",
    "JSON": """\
{"name": "x", "channels": ["defaults", "a"], "dependencies": ["main::six >=1,<2"]}
=>
{"name": "x", "channels": ["conda-forge", "a"], "dependencies": ["conda-forge::six>=1,<2"]}
""",
    "what needs quotes in a flow list": """\
channels: [a]
dependencies: [main::six >=1, 'r::b[build="*x*"]', 'r::c >=1,<2']
=>
channels: [a]
dependencies: [conda-forge::six>=1, "conda-forge::b[build='*x*']", 'conda-forge::c>=1,<2']
""",
    "no channels": """\
# mine
name: x
dependencies:
- python=3.9
=>
# mine
channels:
- conda-forge
name: x
dependencies:
- python=3.9
""",
    "no channels in JSON": """\
{"dependencies": ["six"]}
=>
{"channels": ["conda-forge"], "dependencies": ["six"]}
""",
    "nothing at all": """\
{}
=>
{"channels": ["conda-forge"]}
""",
    "empty channels": """\
channels: # none
name: x
=>
channels: [conda-forge] # none
name: x
""",
    "null channels": """\
channels: ~
name: x
=>
channels: [conda-forge]
name: x
""",
    "an empty list": """\
channels: []
=>
channels: [conda-forge]
""",
    "an empty list in JSON": """\
{"channels":[]}
=>
{"channels": ["conda-forge"]}
""",
    "a package's channel": """\
channels: [a]
dependencies:
- main::numpy <2, >=1.2
- a::six=1=py_0
- r::r-base
=>
channels: [a]
dependencies:
- conda-forge::numpy>=1.2,<2
- a::six=1=py_0
- conda-forge::r-base
""",
    "a package's channel in brackets": """\
channels: [a]
dependencies:
- 'six[channel=main, version=">=1"]'
- six[version='>=1']
=>
channels: [a]
dependencies:
- 'conda-forge::six>=1'
- six[version='>=1']
""",
    "builds": """\
channels: [defaults]
dependencies:
- python=3.9.18=h12_0 # exact
- numpy 1.2 py39_0
- scipy=1.11
- a=1.*=*mkl*
- b==1.2|==1.3[build_number=2]
- c[version='1.2.*',build=py_0]
=>
channels: [conda-forge]
dependencies:
- python==3.9.18 # exact
- numpy==1.2
- scipy=1.11
- a=1.*=*mkl*
- b ==1.2|==1.3
- c=1.2
""",
    "an export": """\
name: x
channels:
  - defaults
dependencies:
  - _libgcc_mutex=0.1=main
  - numpy=1.20.3=py38hf144106_0
  - pip=21.1.3=py38h06a4308_0
  - pip:
    - six==1.16
  # TLS
  - openssl=1.1.1k=h27cfd23_0  # old
  - zlib=1.2=h7
prefix: /home/me/x
=>
name: x
channels:
  - conda-forge
dependencies:
  - numpy==1.20.3
  - pip==21.1.3
  - pip:
    - six==1.16
  # TLS
  # old
prefix: /home/me/x
""",
    "an export of which nothing stays": """\
channels: [defaults]
dependencies:
- zlib=1=h7
- xz=5=h7
name: x
=>
channels: [conda-forge]
dependencies:
name: x
""",
    "an export in flow style of which nothing stays": """\
channels: [defaults]
dependencies: [zlib=1=h7, xz=5=h7,]
=>
channels: [conda-forge]
dependencies: []
""",
    "a dash in a line of its own": """\
channels:
- conda-forge
-
  # - no
  defaults # x
- a
=>
channels:
- conda-forge
# - no
# x
- a
""",
    "blocks of text": """\
channels:
- >-
  defaults

- a
- |
  r

# end
=>
channels:
- conda-forge

- a

# end
""",
    "texts of two lines": """\
channels: [a]
dependencies:
- main::numpy
  =1.2=b # c
- 'r::x
  1.2'
=>
channels: [a]
dependencies:
- conda-forge::numpy==1.2 # c
- 'conda-forge::x==1.2'
""",
    "anchors": """\
channels: &a
- &b defaults
=>
channels: &a
- conda-forge
""",
    "other letters": """\
name: Zoë \N{SNAKE}
# \N{SNAKE}
channels: [defaults] # \N{SNAKE}
=>
name: Zoë \N{SNAKE}
# \N{SNAKE}
channels: [conda-forge] # \N{SNAKE}
""",
    "the marks of a document": """\
%YAML 1.1
---
name: x
dependencies:
    - main::a
...
=>
%YAML 1.1
---
channels:
- conda-forge
name: x
dependencies:
    - conda-forge::a
...
""",
    "explicit keys": """\
? channels
: [defaults]
? dependencies
: - main::a
  - b
=>
? channels
: [conda-forge]
? dependencies
: - conda-forge::a
  - b
""",
}


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("case", CHANGED)
def test_only_what_comes_to_mean_something_else_is_written(
    tmp_path: Path, case: str, line_end: str
) -> None:
    before, after = CHANGED[case].replace("\n", line_end).split(f"=>{line_end}")
    meant = meaning(model(tmp_path / "before", before))

    assert migrated(tmp_path / "after", before) == after
    assert meaning(tmp_path / "after") == meant
    assert read(tmp_path / "after").notes == ()


@pytest.mark.parametrize(
    "text",
    [
        "channels:\n- conda-forge\ndependencies:\n-   python=3.9=h1_0\n",
        "channels: [ 'conda-forge',nodefaults, conda-forge ]\n",
        "channels: [nodefaults]\ndependencies: [openssl=1.1.1k=h27cfd23_0]\n",
        "channels: [https://mirror.corp/anaconda/pkgs/main, pytorch]\n",
        "channels: [a]\ndependencies:\n- a::numpy=1.2=py_0\n- conda-forge::six\n",
    ],
)
def test_what_names_none_of_anacondas_channels_stays_as_it_is(tmp_path: Path, text: str) -> None:
    folder = model(tmp_path, text)

    assert migrating.plan(folder) == migrating.Migration(folder)


def test_a_last_line_without_an_end_is_removed(tmp_path: Path) -> None:
    after = migrated(tmp_path, "channels:\n- a\n- conda-forge\n- r")

    assert after == "channels:\n- a\n- conda-forge\n"


@pytest.mark.parametrize("channel", ANACONDAS)
def test_every_spelling_is_migrated(tmp_path: Path, channel: str) -> None:
    quoted = json.dumps(channel)
    text = f"channels: [{quoted}, a]\ndependencies:\n- '{channel.strip()}::six'\n"

    after = migrated(tmp_path, text)

    assert after == "channels: [\"conda-forge\", a]\ndependencies:\n- 'conda-forge::six'\n"


def test_a_whole_export_is_migrated(tmp_path: Path) -> None:
    lines = "".join(f"  - {one}\n" for one in EXPORT)

    after = migrated(tmp_path, f"channels:\n  - defaults\ndependencies:\n{lines}")

    kept = "".join(f"  - {one.replace(' ', '')}\n" for one in FORGED)
    assert after == f"channels:\n  - conda-forge\ndependencies:\n{kept}"


_NAMES = st.sampled_from(["numpy", "python", "openssl", "ld_impl_linux-64", "py-opencv", "zlib"])
_ENDS = ["", "=1.2", "==1.2", " 1.2", "=1.2=h1_0", " 1.2 h1_0", "=1.2=*mkl*", ">=1.2,<2", " 1.2|2"]
_OTHERS = [one for one in OTHERS if one.isascii() and one.isprintable()]
_CHANNELS = st.lists(st.sampled_from([*ANACONDAS, *_OTHERS, "conda-forge"]), max_size=5)
_PACKAGES = st.lists(
    st.tuples(st.sampled_from(["", "", "main::", "r::", "mine::", "defaults/linux-64::"]), _NAMES,
              st.sampled_from(_ENDS)).map("".join),
    max_size=6,
)  # fmt: skip


def _written(entries: list[str], layout: str) -> str:
    quoted = [f"'{one}'" if "'" in layout else json.dumps(one) for one in entries]
    if "[" in layout:
        return f" [{', '.join(quoted)}]\n"
    if "," in layout:
        lines = (f"  {one},  # {n}\n  # after {n}\n" for n, one in enumerate(quoted))
        return "".join([" [ # begin\n", *lines, "  ] # end\n"])
    return "".join(["\n", *(f"  - {one}  # {n}\n" for n, one in enumerate(quoted))])


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    channels=_CHANNELS,
    packages=_PACKAGES,
    layout=st.sampled_from(["[", "[']", ",", ",'", "-", "-'"]),
)
def test_what_is_read_after_is_what_was_rewritten_before(
    tmp_path: Path, channels: list[str], packages: list[str], layout: str
) -> None:
    text = f"channels:{_written(channels, layout)}dependencies:{_written(packages, layout)}"
    folder = model(tmp_path, text)
    meant = meaning(folder)

    plan = migrating.plan(folder)
    after = migrated(folder, text)

    assert meaning(folder) == meant
    assert read(folder).notes == ()
    assert (after != text) == (plan.notes != ())
    assert re.findall("#.*", after) == re.findall("#.*", text)
    assert (folder / "MLmodel").read_text() == MLMODEL


@pytest.mark.parametrize(
    "text",
    [
        "channels: [mine]\ndependencies:\n- a\x85- main::_libgcc_mutex=1=main\x85- b\n",
        "channels:\n- conda-forge\r- a\r- defaults\rdependencies: [six]\r",
        "&a\nname: x\ndependencies: [six]\n",
        "? dependencies\n: - main::_libgcc_mutex=1=main\n  - six\n? channels\n: [a]\n",
    ],
)
def test_what_cannot_be_edited_is_said(tmp_path: Path, text: str) -> None:
    with pytest.raises(ModelInvalidError, match="cannot be edited"):
        migrating.plan(model(tmp_path, text))


# Which files there are.

INNER = """\
flavors:
  python_function:
    env:
      conda: conda.yaml
  mine:
    # as it was trained
    conda_env:
      channels: [defaults]
      dependencies:
      - main::numpy=1.2=py_0
      - pip: [six]
  old:
    env: {name: x, dependencies: [python=3.9]}
  new:
    env:
      conda:
        channels:
        - r
      virtualenv: python_env.yaml
  other:
    env: train.yml
    conda_env: config.yaml
  another:
    env: MLmodel
    conda_env: environment.tar
signature: '[{"name": "defaults"}]'
model_config: {channels: [defaults]}
"""
INNER_CHANGED = {
    "      channels: [defaults]": "      channels: [conda-forge]",
    "main::numpy=1.2=py_0": "conda-forge::numpy==1.2",
    "{name": '{"channels": ["conda-forge"], name',
    "- r\n": "- conda-forge\n",
}


def test_the_environments_in_mlmodel_and_metadata_agree_afterwards(tmp_path: Path) -> None:
    folder = model(tmp_path / "model", mlmodel=INNER)
    model(folder / "metadata", mlmodel=INNER)
    (folder / "train.yml").write_text("channels: [main]\n")
    (folder / "config.yaml").write_text("size: 3\n")
    (folder / "environment.tar").write_bytes(b"\xff")

    plan = migrating.plan(folder)
    migrating.carry_out(plan)

    expected = INNER
    for old, new in INNER_CHANGED.items():
        expected = expected.replace(old, new)
    assert [one.file for one in plan.changes] == [
        "conda.yaml", "metadata/conda.yaml", "train.yml", "MLmodel", "metadata/MLmodel",
    ]  # fmt: skip
    for one in (folder, folder / "metadata"):
        assert (one / "MLmodel").read_text() == expected
        assert (one / "conda.yaml").read_text() == DEFAULTS.replace("defaults", "conda-forge")
    assert (folder / "train.yml").read_text() == "channels: [conda-forge]\n"
    assert migrating.plan(folder).changes == ()


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ("{channels: defaults}", "line 4: `channels` is not a list"),
        ("{channels: [[defaults]]}", "line 4: a channel is not a text"),
        ("{channels: ['']}", "line 4: an entry of a conda environment cannot be used: it is"),
        ("{dependencies: {a: b}}", "line 4: `dependencies` is not a list"),
        ("{dependencies: ['six # [linux]']}", "selectors and conditions"),
        ("{dependencies: [&a six, *a]}", "aliases"),
    ],
)
def test_an_environment_in_mlmodel_that_is_none_is_refused(
    tmp_path: Path, environment: str, says: str
) -> None:
    inner = f"{MLMODEL.partition('    env')[0]}    loader_module: x\n    env: {environment}\n"

    with pytest.raises(ModelInvalidError) as caught:
        migrating.plan(model(tmp_path, mlmodel=inner))

    assert says in caught.value.message


def test_models_that_lie_in_a_model_are_its_data(tmp_path: Path, envctl: Called) -> None:
    folder = model(tmp_path / "models" / "outer")
    inner = model(folder / "data" / "inner")

    done = envctl("migrate", tmp_path / "models", "--in-place")

    assert done.stdout == f"{folder}\n"
    assert (inner / "conda.yaml").read_text() == DEFAULTS


def test_a_model_without_a_conda_file_has_nothing_to_change(tmp_path: Path) -> None:
    folder = model(tmp_path)
    (folder / "conda.yaml").unlink()

    assert migrating.plan(folder).changes == ()


def test_one_file_of_two_names_is_changed_once(tmp_path: Path) -> None:
    folder = model(tmp_path, mlmodel=MLMODEL.replace("conda.yaml", "env/../env/conda.yml"))
    (folder / "env").mkdir()
    (folder / "conda.yaml").rename(folder / "env" / "conda.yml")
    (folder / "conda.yaml").symlink_to("env/conda.yml")

    migrating.carry_out(migrating.plan(folder))

    assert (folder / "conda.yaml").is_symlink()
    assert "conda-forge" in (folder / "conda.yaml").read_text()
    assert [one.name for one in (folder / "env").iterdir() if "orig" in one.name] == [
        "conda.yml.orig"
    ]


def test_a_link_out_of_the_model_is_not_followed(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    outside = tmp_path / "outside.yaml"
    shutil.move(folder / "conda.yaml", outside)
    (folder / "conda.yaml").symlink_to(outside)

    with pytest.raises(ModelInvalidError, match="leads out of the model"):
        migrating.plan(folder)

    assert outside.read_text() == DEFAULTS


def said_of(folder: Path) -> tuple[str, str]:
    """Return what is shown of a model, and the reason of the failure if it is one."""
    try:
        return "".join(one.diff(folder) for one in migrating.plan(folder).changes), ""
    except EnvdError as error:
        return error.message, error.reason


@pytest.mark.slow
@pytest.mark.parametrize("case", [one for one in hostile.names() if one not in hostile.SLOW])
def test_a_hostile_model_costs_little_and_tells_nothing(tmp_path: Path, case: str) -> None:
    folder = hostile.made(case, tmp_path)
    started = time.process_time()

    said, reason = said_of(folder)

    assert reason in {"", "MODEL_INVALID"}
    assert time.process_time() - started < 3
    assert hostile.CANARY not in said
    assert all(line.isprintable() for line in said.splitlines())
    subprocess.run(["rm", "-rf", tmp_path], check=True)


def test_a_file_of_very_many_lines_is_refused(tmp_path: Path) -> None:
    many = "".join(f"- p{n}=1=h{n}\n" if n % 2 else f"# {n % 99}\n" for n in range(1_990))
    text = f"channels: [defaults]\ndependencies:\n{many}"
    started = time.process_time()

    (change,) = migrating.plan(model(tmp_path, text)).changes

    assert len(change.diff(tmp_path).splitlines()) > 2_900
    assert time.process_time() - started < 5
    with pytest.raises(ModelInvalidError, match="over 2000 lines"):
        migrating.plan(model(tmp_path, text + "#\n" * 20))


def test_a_folder_without_mlmodel_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        migrating.plan(tmp_path)


# How they are written.


def test_the_original_lies_beside_with_its_permissions_and_times(tmp_path: Path) -> None:
    folder = model(tmp_path)
    path = folder / "conda.yaml"
    path.chmod(0o640)
    os.utime(path, (1_000, 2_000))
    other = tmp_path / "a-link-of-another-store"
    os.link(path, other)

    migrating.carry_out(migrating.plan(folder))

    original = folder / "conda.yaml.orig"
    assert original.read_text() == DEFAULTS
    assert original.stat().st_mtime == 2_000
    assert stat.S_IMODE(original.stat().st_mode) == stat.S_IMODE(path.stat().st_mode) == 0o640
    assert other.read_text() == DEFAULTS
    assert path.stat().st_mtime > 2_000
    assert sorted(one.name for one in folder.iterdir()) == sorted(
        ["MLmodel", "a-link-of-another-store", "conda.yaml", "conda.yaml.orig"]
    )


def test_an_earlier_original_is_never_overwritten(tmp_path: Path) -> None:
    folder = model(tmp_path)
    migrating.carry_out(migrating.plan(folder))
    (folder / "conda.yaml.orig.1").symlink_to("nowhere")
    (folder / "conda.yaml.orig.2").mkdir()
    for text in ("channels: [main]\n", DEFAULTS, "channels: [main]\n"):
        migrated(folder, text)

    assert (folder / "conda.yaml.orig").read_text() == DEFAULTS
    assert (folder / "conda.yaml.orig.1").is_symlink()
    assert (folder / "conda.yaml.orig.3").read_text() == "channels: [main]\n"
    assert not (folder / "conda.yaml.orig.4").exists()


def test_a_byte_order_mark_stays(tmp_path: Path) -> None:
    folder = model(tmp_path, b"\xef\xbb\xbf" + DEFAULTS.encode())

    migrating.carry_out(migrating.plan(folder))

    after = (folder / "conda.yaml").read_bytes()
    assert after == b"\xef\xbb\xbf" + DEFAULTS.replace("defaults", "conda-forge").encode()
    assert (folder / "conda.yaml.orig").read_bytes() == b"\xef\xbb\xbf" + DEFAULTS.encode()


def test_what_has_changed_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    folder = model(tmp_path)
    model(folder / "metadata")
    plan = migrating.plan(folder)
    (folder / "metadata" / "conda.yaml").write_text("channels: [mine]\n")

    with pytest.raises(ModelInvalidError, match="has changed since"):
        migrating.carry_out(plan)

    assert (folder / "conda.yaml").read_text() == DEFAULTS
    assert list(folder.rglob("*.orig")) == list(folder.rglob(".unfinished*")) == []


def test_what_a_crash_left_between_two_files_is_healed(tmp_path: Path) -> None:
    folder = model(tmp_path)
    model(folder / "metadata")
    new = DEFAULTS.replace("defaults", "conda-forge")
    (folder / "conda.yaml.orig").write_text(DEFAULTS)
    (folder / "conda.yaml").write_text(new)
    (folder / "metadata" / "conda.yaml.orig").write_text(DEFAULTS)

    migrating.carry_out(migrating.plan(folder))

    assert sorted(path.read_text() for path in folder.rglob("conda.yaml*")) == sorted(
        [DEFAULTS, DEFAULTS, new, new]
    )


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_whole_files(tmp_path: Path, envctl: Called) -> None:
    models = [model(tmp_path / "models" / f"{n:03}") for n in range(150)]
    for one in models:
        model(one / "metadata")
    new = DEFAULTS.replace("defaults", "conda-forge")
    moments = 6

    for moment in range(moments):
        with subprocess.Popen(
            envctl.argv("migrate", tmp_path / "models", "--in-place"),
            env=envctl.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdout
            for _ in range(3 + moment):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        whole = [path.read_text() for one in models for path in one.rglob("conda.yaml")]
        assert len(whole) == 2 * len(models)
        assert set(whole) <= {DEFAULTS, new}
        kept = [path.read_text() for one in models for path in one.rglob("conda.yaml.orig*")]
        assert set(kept) == {DEFAULTS}
        assert kept.count(DEFAULTS) >= whole.count(new)
    assert DEFAULTS in whole, "it was done before it was killed"

    done = envctl("migrate", tmp_path / "models", "--in-place")

    assert done.returncode == 0
    assert {path.read_text() for one in models for path in one.rglob("conda.yaml")} == {new}
    assert not list((tmp_path / "models").rglob("*.orig.1"))
    assert not list((tmp_path / "models").rglob(".unfinished*"))
    assert envctl("migrate", tmp_path / "models", "--check").returncode == 0


# The command.


def test_help_teaches_by_examples(envctl: Called) -> None:
    done = envctl("migrate", "--help")

    assert done.returncode == 0
    assert "Examples:\n    envctl migrate ./model\n" in done.stdout


def test_a_diff_is_shown_and_nothing_written(envctl: Called) -> None:
    done = envctl("migrate", MODELS / B3)

    path = MODELS / B3 / "conda.yaml"
    assert done.returncode == 0
    assert done.stdout == (
        f"--- {path}\n+++ {path}\n@@ -1,5 +1,5 @@\n channels:\n-- defaults\n+- conda-forge\n"
        " dependencies:\n - python=3.7.16\n - scikit-learn=0.22.2.post1\n"
    )
    assert done.stderr == (
        f"note: {MODELS / B3}: packages come from conda-forge in the place of `defaults`\n"
        "1 of 1 model would change\n"
    )


def test_a_folder_is_checked(envctl: Called) -> None:
    done = envctl("migrate", MODELS, "--check")

    assert done.returncode == 1
    assert done.stdout == f"{MODELS / B3}\n{MODELS / B}\n"
    assert done.stderr.startswith("2 of ")
    clean = envctl("migrate", next(MODELS.glob("a_*py39")), "--check")
    assert (clean.returncode, clean.stdout) == (0, "")


def test_links_in_a_folder_are_followed_and_each_model_is_changed_once(
    envctl: Called, tmp_path: Path
) -> None:
    folder, elsewhere = tmp_path / "all", tmp_path / "elsewhere"
    inside = model(folder / "z" / "1")
    far = model(elsewhere / "deep" / "far")
    model(far / "data" / "part")
    (folder / "a").mkdir()
    for link, target in {
        "a/again": "../z", "a/loop": "../..", "a/self": "self", "a/none": "nowhere",
        "a/up": "../../elsewhere/deep/back", "deep": "../elsewhere/deep", "y": "z/1", "z/up": ".",
    }.items():  # fmt: skip
        (folder / link).symlink_to(target)
    (elsewhere / "deep" / "back").symlink_to(folder)
    linked = folder / "deep" / "far"

    checked = envctl("migrate", folder, "--check")
    shown = json.loads(envctl("migrate", folder, "--json").stdout)
    done = envctl("migrate", folder, "--in-place")
    again = envctl("migrate", folder, "--check")

    assert (checked.returncode, checked.stdout) == (1, f"{linked}\n{inside}\n")
    assert f"note: {linked}: a link leads out of the folder to it, to {far}\n" in checked.stderr
    assert [(one["model"], one["outside"]) for one in shown] == [
        (str(linked), str(far)), (str(inside), None),
    ]  # fmt: skip
    assert (done.returncode, done.stdout) == (0, checked.stdout)
    assert {one.name for one in far.iterdir()} == {
        "MLmodel", "conda.yaml", "conda.yaml.orig", "data"
    }  # fmt: skip
    assert "conda-forge" in (far / "conda.yaml").read_text()
    assert (far / "data" / "part" / "conda.yaml").read_text() == DEFAULTS
    assert (folder / "deep").readlink() == Path("../elsewhere/deep")
    assert (folder / "y").is_symlink()
    assert (again.returncode, again.stdout) == (0, "")


def test_a_model_that_is_a_link_itself_is_what_was_given(envctl: Called, tmp_path: Path) -> None:
    folder, link = model(tmp_path / "model"), tmp_path / "link"
    link.symlink_to("model")
    (tmp_path / "loop").symlink_to("loop")

    done = envctl("migrate", link, "--in-place")
    loop = envctl("migrate", tmp_path / "loop")

    assert (done.returncode, done.stdout) == (0, f"{link}\n")
    assert "note: a link" not in done.stderr
    assert "conda-forge" in (folder / "conda.yaml").read_text()
    assert loop.returncode == 1
    assert "no `MLmodel`" in loop.stderr


def test_a_folder_that_cannot_be_looked_into_is_not_passed_over(
    envctl: Called, tmp_path: Path
) -> None:
    folder = tmp_path / "all"
    model(folder / "a", "channels: [conda-forge]\n")
    here = os.open(folder, os.O_RDONLY)
    # Deeper than a path may be long.
    for _ in range(20):
        os.mkdir("x" * 250, dir_fd=here)
        below = os.open("x" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)

    done = envctl("migrate", folder, "--check")
    subprocess.run(["rm", "-rf", folder], check=True)

    assert done.returncode == 1
    assert done.stderr.endswith("0 of 2 models would change, 1 cannot be migrated\n")


def test_several_models_are_migrated_past_what_fails(envctl: Called, tmp_path: Path) -> None:
    first, last = model(tmp_path / "all" / "a"), model(tmp_path / "all" / "z" / "1")
    broken = model(tmp_path / "all" / "broken", "channels: [\n")
    plain = model(tmp_path / "plain", "channels: [conda-forge]\n")

    checked = envctl("migrate", tmp_path / "all", plain, "--check")
    done = envctl("migrate", tmp_path / "all", plain, "--in-place", "--json")
    again = envctl("migrate", tmp_path / "all", plain, "--in-place")

    assert (checked.returncode, checked.stdout) == (1, f"{first}\n{last}\n")
    assert checked.stderr.endswith("2 of 4 models would change, 1 cannot be migrated\n")
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert [(one["model"], one["changed"]) for one in found] == [
        (str(first), True), (str(broken), False), (str(last), True), (str(plain), False),
    ]  # fmt: skip
    assert [one["error"] and one["error"]["reason"] for one in found] == [
        None, "MODEL_INVALID", None, None,
    ]  # fmt: skip
    assert [one["path"] for one in found[0]["files"]] == ["conda.yaml"]
    assert "+channels: [conda-forge]" in found[0]["files"][0]["diff"]
    assert [note["code"] for note in found[0]["notes"]] == ["CHANNEL_REWRITTEN"]
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.endswith("0 of 4 models changed, 1 cannot be migrated\n")
    assert str(broken) in again.stderr


def test_written_models_are_named(envctl: Called, tmp_path: Path) -> None:
    folder = model(tmp_path / "model")

    done = envctl("migrate", folder, "--in-place")

    assert (done.returncode, done.stdout) == (0, f"{folder}\n")
    assert done.stderr.endswith("1 of 1 model changed\n")
    assert "conda-forge" in (folder / "conda.yaml").read_text()


def test_a_model_that_cannot_be_written_stays_as_it_was(envctl: Called, tmp_path: Path) -> None:
    name = "x" * 248 + ".yaml"  # which leaves no room for `.orig`
    folder = model(tmp_path / "model", mlmodel=MLMODEL.replace("conda.yaml", name))
    (folder / name).write_text("channels: [main]\n")

    done = envctl("migrate", folder, "--in-place", "--json")

    (found,) = json.loads(done.stdout)
    assert done.returncode == 1
    assert (found["changed"], found["error"]["reason"]) == (False, "MODEL_INVALID")
    assert (
        found["error"]["message"] == f"the model `{folder}` cannot be changed: File name too long"
    )
    assert (folder / name).read_text() == "channels: [main]\n"
    assert (folder / "conda.yaml").read_text() == DEFAULTS
    assert not list(folder.glob(".unfinished*"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("models:/iris/1",), "is a URI"),
        (("s3://me:s3cret@bucket/model",), "is a URI"),
        (("https://me:s3cret@host/model", "--check"), "is a URI"),
        ((), "MODEL"),
        ((".", "--check", "--in-place"), "not both"),
    ],
)
def test_what_cannot_be_migrated_is_a_mistake_of_usage(
    envctl: Called, arguments: tuple[str, ...], says: str
) -> None:
    done = envctl("migrate", *arguments)

    assert done.returncode == 2
    assert says in done.stderr
    assert "s3cret" not in done.stderr


def test_a_folder_without_models_is_a_mistake_of_usage(envctl: Called, tmp_path: Path) -> None:
    done = envctl("migrate", tmp_path, "--check")

    assert done.returncode == 2
    assert f"there is no model in {tmp_path}" in done.stderr


def test_a_folder_that_is_not_there_is_no_model(envctl: Called, tmp_path: Path) -> None:
    done = envctl("migrate", tmp_path / "none", "--check")

    assert done.returncode == 1
    assert "no `MLmodel`" in done.stderr


def test_secrets_and_controls_are_not_shown(envctl: Called, tmp_path: Path) -> None:
    folder = model(
        tmp_path / "model",
        "channels:\n- https://conda.anaconda.org/t/s3cret/main\n"
        "- https://me:s3cret@mine/t/s3cret/a\n- defaults\n# \u202e\ndependencies:\n"
        '- "https://u:s3cret@repo.anaconda.com/pkgs/r::six"\n',
    )

    shown, machine = envctl("migrate", folder), envctl("migrate", folder, "--json")

    for done in (shown, machine):
        assert done.returncode == 0
        assert "s3cret" not in done.stdout + done.stderr
        assert "\u202e" not in done.stdout
        assert "conda-forge" in done.stdout
    assert shown.stdout.count("/t/***") == 2


def test_the_values_of_variables_are_not_shown(envctl: Called, tmp_path: Path) -> None:
    variables = "variables:\n  A: s3cret\n  B: |\n    more\n    s3cret\n"
    inner = "{channels: [defaults], variables: {A: s3cret}}"
    folder = model(
        tmp_path / "model",
        f"{variables}channels: [defaults]\nname: x\n",
        MLMODEL.replace("conda.yaml", inner),
    )

    shown, machine = envctl("migrate", folder), envctl("migrate", folder, "--json")
    envctl("migrate", folder, "--in-place")

    for done in (shown, machine):
        assert done.returncode == 0
        assert "s3cret" not in done.stdout + done.stderr
    assert "\n variables:\n   A: ***\n   B: ***\n-channels" in shown.stdout
    assert "+    env: {channels: [conda-forge], variables: {A: ***}}" in shown.stdout
    assert (folder / "conda.yaml").read_text().startswith(f"{variables}channels: [conda-forge]\n")


def test_it_is_in_color_on_a_terminal_only(envctl: Called) -> None:
    ours, theirs = pty.openpty()
    argv = envctl.argv("migrate", MODELS / B3)
    subprocess.run(argv, env=envctl.env, stdout=theirs, stderr=subprocess.DEVNULL, check=True)
    os.close(theirs)

    seen = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "\x1b[31m-- defaults\x1b[0m" in seen
    assert "\x1b[32m+- conda-forge\x1b[0m" in seen
    assert "\x1b" not in envctl("migrate", MODELS / B3).stdout


# MLflow.

READ_BY_MLFLOW = """
import json, pathlib, sys
import mlflow.pyfunc
from mlflow.models import Model
from mlflow.utils.environment import _PythonEnv

folder = pathlib.Path(sys.argv[1])
python = _PythonEnv.from_conda_yaml(folder / "conda.yaml")
print(json.dumps({
    "flavors": sorted(Model.load(str(folder)).flavors),
    "python": python.python,
    "build": python.build_dependencies,
    "pip": python.dependencies,
    "conda": pathlib.Path(mlflow.pyfunc.get_model_dependencies(str(folder), "conda")).read_text(),
}))
"""


def test_mlflow_reads_what_is_written(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(MODELS / B3, tmp_path / "model"))
    lines = "".join(f"  - {one}\n" for one in EXPORT)
    pip = "  - pip:\n      - mlflow\n      - cloudpickle==2.2.1\n"
    (folder / "conda.yaml").write_text(f"channels:\n  - main\ndependencies:\n{lines}{pip}")

    migrating.carry_out(migrating.plan(folder))
    done = subprocess.run(
        [sys.executable, "-c", READ_BY_MLFLOW, folder], capture_output=True, text=True, check=True
    )

    found = json.loads(done.stdout.splitlines()[-1])
    assert found["flavors"] == ["python_function", "sklearn"]
    assert found["python"] == "3.8.11"
    assert found["build"] == ["pip==21.1.3"]
    assert found["pip"] == ["mlflow", "cloudpickle==2.2.1"]
    assert found["conda"].startswith("channels:\n  - conda-forge\ndependencies:\n  - certifi==2021")
