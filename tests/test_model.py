"""Models of every age, models made to do harm, and what makes a worker stale."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from envd.errors import ModelInvalidError, ModelNotFoundError
from envd.model import Models, files, read

MLFLOW_1_8 = """\
flavors:
  python_function:
    data: model.pkl
    env: conda.yaml
    loader_module: mlflow.sklearn
    python_version: 3.7.16
  sklearn:
    pickled_model: model.pkl
    sklearn_version: 0.22.2.post1
utc_time_created: '2023-02-01 09:00:00.000000'
"""
MLFLOW_2_9 = """\
flavors:
  python_function:
    env:
      conda: conda.yaml
      virtualenv: python_env.yaml
    loader_module: mlflow.sklearn
    model_path: model.pkl
    predict_fn: predict
    python_version: 3.9.18
mlflow_version: 2.9.2
model_size_bytes: 1143
model_uuid: cd8a32d708354ac9857d36b2ac87b6fe
signature:
  inputs: '[{"type": "double", "name": "sepal
    length (cm)"}]'
  outputs: '[{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}]'
  params: null
utc_time_created: '2026-11-22 05:56:49.992931'
"""
MLFLOW_3_17 = """\
env_vars:
- OPENAI_API_KEY
- MODEL_SECRET
flavors:
  python_function:
    cloudpickle_version: 3.1.2
    code: code
    env:
      conda: conda.yaml
      virtualenv: python_env.yaml
    loader_module: mlflow.pyfunc.model
    python_model: python_model.pkl
    python_version: 3.11.7
    streamable: false
mlflow_version: 3.17.2
model_id: null
prompts: null
utc_time_created: '2026-11-22 05:59:10.999374'
"""


def write(path: Path, text: str = MLFLOW_3_17) -> Path:
    """Write a model directory with all the files that any of the texts above names."""
    (path / "code" / "package").mkdir(parents=True)
    (path / "MLmodel").write_text(text)
    (path / "code" / "mine.py").write_text("ANSWER = 1\n")
    (path / "code" / "package" / "deep.py").write_text("")
    for name in ("conda.yaml", "python_env.yaml", "requirements.txt", "model.pkl"):
        (path / name).write_text(f"# {name}\n")
    return path


def flavor(*lines: str) -> str:
    """Return an `MLmodel` whose Python function has *lines* besides its loader."""
    rows = "".join(f"    {line}\n" for line in lines)
    return f"flavors:\n  python_function:\n    loader_module: mine\n{rows}"


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_model_of_mlflow_1_names_its_environment_as_a_text(tmp_path: Path) -> None:
    path = write(tmp_path / "model", MLFLOW_1_8)
    (path / "python_env.yaml").unlink()

    model = read(path)

    assert (model.conda_file, model.virtualenv_file) == ("conda.yaml", None)
    assert (model.loader_module, model.data, model.code) == ("mlflow.sklearn", "model.pkl", None)
    assert (model.python_version, model.mlflow_version) == ("3.7.16", None)
    assert model.created == "2023-02-01 09:00:00.000000"
    assert (model.signature, model.env_vars) == (None, ())
    assert list(model.flavors) == ["python_function", "sklearn"]


def test_a_model_of_mlflow_2_names_its_environments_as_a_mapping(tmp_path: Path) -> None:
    model = read(write(tmp_path / "model", MLFLOW_2_9))

    assert (model.conda_file, model.virtualenv_file) == ("conda.yaml", "python_env.yaml")
    assert (model.data, model.mlflow_version) == (None, "2.9.2")
    assert isinstance(model.signature, dict)
    assert model.signature["inputs"] == '[{"type": "double", "name": "sepal length (cm)"}]'
    assert model.signature["params"] is None


def test_a_model_of_mlflow_3_has_its_code_and_the_variables_it_needs(tmp_path: Path) -> None:
    model = read(write(tmp_path / "model", MLFLOW_3_17))

    assert model.code == "code"
    assert model.env_vars == ("OPENAI_API_KEY", "MODEL_SECRET")


@pytest.mark.parametrize("env", ["other: 1", "env: null", "env: {}", "env: []"])
def test_environment_files_that_nothing_names_are_found_where_they_lie(
    tmp_path: Path, env: str
) -> None:
    model = read(write(tmp_path / "model", flavor(env)))

    assert (model.conda_file, model.virtualenv_file) == ("conda.yaml", "python_env.yaml")


def test_environment_files_may_have_other_names(tmp_path: Path) -> None:
    env = "env: {conda: env/my.yaml, virtualenv: ./env/../python_env.yaml}"
    path = write(tmp_path / "model", flavor(env))
    (path / "env").mkdir()
    (path / "env" / "my.yaml").touch()

    model = read(path)

    assert (model.conda_file, model.virtualenv_file) == ("env/my.yaml", "python_env.yaml")


def test_environment_files_that_are_missing_are_none(tmp_path: Path) -> None:
    path = write(tmp_path / "model", flavor("env: conda.yaml"))
    (path / "conda.yaml").unlink()
    (path / "python_env.yaml").unlink()

    model = read(path)

    assert (model.conda_file, model.virtualenv_file) == (None, None)


@pytest.mark.parametrize("line", ["code: null", "code:", "code: ~", "other: 1"])
def test_a_model_without_code_has_none(tmp_path: Path, line: str) -> None:
    assert read(write(tmp_path / "model", flavor(line))).code is None


def test_a_model_in_a_linked_directory_is_read(tmp_path: Path) -> None:
    write(tmp_path / "v1")
    (tmp_path / "current").symlink_to("v1")

    model = read(tmp_path / "current")

    assert (model.path, model.conda_file) == (tmp_path / "current", "conda.yaml")


def test_a_link_that_stays_in_the_model_is_followed(tmp_path: Path) -> None:
    path = write(tmp_path / "model", flavor("data: latest.pkl"))
    (path / "latest.pkl").symlink_to("model.pkl")

    assert read(path).data == "latest.pkl"


def test_keys_that_are_not_known_are_left_alone(tmp_path: Path) -> None:
    text = "from_the_future: {a: [1, {b: 2}]}\n" + flavor("new_key: 1", "config: {depth: 3}")

    assert read(write(tmp_path / "model", text)).loader_module == "mine"


def test_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "model")
    as_here = read(path)
    (path / "MLmodel").write_bytes(MLFLOW_3_17.replace("\n", "\r\n").encode())

    as_there = read(path)

    for name in ("loader_module", "code", "env_vars", "mlflow_version", "created", "flavors"):
        assert getattr(as_there, name) == getattr(as_here, name)


def test_a_path_that_is_not_utf_8_is_to_be_renamed(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfebad"))
    path.mkdir()
    (path / "MLmodel").write_text(MLFLOW_1_8)

    with pytest.raises(ModelInvalidError, match="is not UTF-8; rename it") as caught:
        read(path)

    shown = f"{tmp_path}/\ufffd\ufffdbad"
    assert f"`{shown}`" in caught.value.message
    assert caught.value.metadata == {"model": shown}
    assert json.dumps(caught.value.document(), ensure_ascii=False).encode()


def test_a_directory_that_is_not_there_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="does not exist; give the directory") as caught:
        read(tmp_path / "nowhere")

    assert caught.value.metadata == {"model": str(tmp_path / "nowhere")}


def test_a_file_is_no_model(tmp_path: Path) -> None:
    path = write(tmp_path / "model") / "MLmodel"

    with pytest.raises(ModelNotFoundError, match="is not a directory; give the directory"):
        read(path)


def test_a_directory_without_an_mlmodel_file_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no `MLmodel` file in"):
        read(tmp_path)


def test_a_path_that_no_file_can_have_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        read(tmp_path / "a\0b")


def test_a_model_without_a_python_function_says_what_it_has(tmp_path: Path) -> None:
    path = write(tmp_path / "model", "flavors:\n  mleap: {}\n  spark: {}\n")

    with pytest.raises(ModelInvalidError, match=r"no `python_function` flavor.*mleap, spark"):
        read(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: 1\n", "`flavors` is not a mapping"),
        ("flavors: [python_function]\n", "`flavors` is not a mapping"),
        ("flavors:\n  python_function: null\n", "`python_function` is not a mapping"),
        ("flavors:\n  python_function: {}\n", "has no `loader_module`"),
        ("flavors:\n  python_function: {loader_module: [a]}\n", "`loader_module` is not a text"),
        (flavor("code: [code]"), "`code` is not a text"),
        (flavor("data: {path: model.pkl}"), "`data` is not a text"),
        (flavor("env: {conda: [conda.yaml]}"), "`conda` is not a text"),
        (flavor("data: gone.pkl"), "`gone.pkl` is not in the model"),
        ("", "it is not a mapping"),
    ],
)
def test_an_mlmodel_that_cannot_be_used_says_why(tmp_path: Path, text: str, why: str) -> None:
    path = write(tmp_path / "model", text)

    with pytest.raises(ModelInvalidError, match=why) as caught:
        read(path)

    assert str(path) in caught.value.message


def test_broken_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "model", "a: 1\nb: 2\nc: d: e\nf: 3\n")

    with pytest.raises(ModelInvalidError, match="MLmodel`, line 3: ") as caught:
        read(path)

    assert caught.value.metadata["line"] == "3"


@pytest.mark.parametrize(
    "name", ["../secret", "code/../../secret", "/etc/hostname", "out", "out/deep", '"a\\0b"']
)
@pytest.mark.parametrize("line", ["code: {}", "data: {}", "env: {{conda: {}}}"])
def test_a_model_may_not_name_what_is_outside_it(tmp_path: Path, line: str, name: str) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "deep").touch()
    path = write(tmp_path / "model", flavor(line.format(name)))
    (path / "out").symlink_to(tmp_path / "secret")

    if "env" in line and "\\0" in name:
        # What no file can be called is not there; `conda.yaml` then is as if it were missing.
        assert read(path).conda_file is None
    else:
        with pytest.raises(ModelInvalidError, match=r"leads out of the model|not a relative path"):
            read(path)


def test_an_mlmodel_that_leads_out_of_the_model_is_not_read(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text(MLFLOW_2_9)
    path = write(tmp_path / "model")
    (path / "MLmodel").unlink()
    (path / "MLmodel").symlink_to(outside)

    with pytest.raises(ModelInvalidError, match="leads out of the model"):
        read(path)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [make_pipe, make_socket, Path.mkdir])
@pytest.mark.parametrize("name", ["MLmodel", "requirements.txt"])
def test_what_is_no_regular_file_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], None], name: str
) -> None:
    path = write(tmp_path / "model")
    (path / name).unlink()
    make(path / name)
    before = open_descriptors()

    with pytest.raises(ModelInvalidError, match=f"`{name}` of the model .* (regular|be read)"):
        files.read_text(path, name)

    assert open_descriptors() == before


@pytest.mark.timeout(20)
def test_a_pipe_among_the_files_of_a_model_does_not_stop_its_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "model")
    make_pipe(path / "code" / "pipe.py")
    make_pipe(path / "constraints.txt")

    assert len(read(path).digest) == 64


def test_metadata_without_end_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "model")
    with (path / "MLmodel").open("r+b") as file:
        file.truncate(1 << 40)

    with pytest.raises(ModelInvalidError, match="over 1048576 bytes"):
        read(path)


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "model", flavor("data: a"))
    (path / "a").symlink_to("b")
    (path / "b").symlink_to("a")

    with pytest.raises(ModelInvalidError, match=r"`a` in the model .* is a link in a circle"):
        read(path)


@pytest.mark.parametrize(
    ("target", "why"), [("MLmodel", "is a link in a circle"), ("gone", "to what is not there")]
)
def test_an_mlmodel_that_leads_nowhere_is_said_to_be_a_link(
    tmp_path: Path, target: str, why: str
) -> None:
    (tmp_path / "MLmodel").symlink_to(target)

    with pytest.raises(ModelInvalidError, match=rf"`MLmodel` in the model .*{why}.*; put"):
        read(tmp_path)


def rewrite_keeping_the_time(path: Path, text: str) -> None:
    status = path.stat()
    path.write_text(text)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_a_copy(path: Path) -> None:
    status = path.stat()
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    copy.replace(path)


def rename(path: Path, name: str) -> None:
    path.rename(path.with_name(name))


@pytest.mark.parametrize(
    "change",
    [
        lambda path: rewrite_keeping_the_time(path / "code" / "mine.py", "ANSWER = 2\n"),
        lambda path: (path / "code" / "package" / "deep.py").write_text("x = 1\n"),
        lambda path: (path / "code" / "new.py").touch(),
        lambda path: (path / "code" / "mine.py").unlink(),
        lambda path: rename(path / "code" / "mine.py", "yours.py"),
        lambda path: rewrite_keeping_the_time(path / "requirements.txt", "# requirements.TXT\n"),
        lambda path: (path / "model.pkl").write_text("another pickle\n"),
        lambda path: os.utime(path / "model.pkl", ns=(1, 1)),
        lambda path: replace_by_a_copy(path / "model.pkl"),
        lambda path: (path / "extra.bin").touch(),
    ],
)
def test_the_digest_changes_with_what_a_worker_loads(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = write(tmp_path / "model")
    before = read(path).digest

    change(path)

    assert read(path).digest != before


def compile_code(path: Path) -> None:
    (path / "code" / "package" / "__pycache__").mkdir()
    (path / "code" / "package" / "__pycache__" / "deep.cpython-311.pyc").write_bytes(b"pyc")


@pytest.mark.parametrize(
    "change",
    [
        lambda _: None,
        compile_code,
        lambda path: os.utime(path / "code" / "mine.py", ns=(1, 1)),
        lambda path: replace_by_a_copy(path / "MLmodel"),
        lambda path: (path / "empty").mkdir(),
    ],
)
def test_the_digest_stays_while_a_worker_would_load_the_same(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = write(tmp_path / "model")
    before = read(path).digest

    change(path)

    assert read(path).digest == before


def test_where_a_model_has_no_code_its_files_are_artifacts(tmp_path: Path) -> None:
    path = write(tmp_path / "model", flavor("code: null"))
    before = read(path).digest

    os.utime(path / "code" / "mine.py", ns=(1, 1))

    assert read(path).digest != before


def no_time() -> float:
    return 0.0


def test_a_model_is_remembered_until_one_of_its_files_changes(tmp_path: Path) -> None:
    path = write(tmp_path / "model")
    models = Models(no_time)

    first, again = models.read(path), models.read(path)
    (path / "MLmodel").write_text(MLFLOW_2_9)
    second, still = models.read(path), models.read(path)
    (path / "code" / "mine.py").write_text("ANSWER = 2\n")
    third = models.read(path)

    assert again is first
    assert still is second
    assert (first.mlflow_version, second.mlflow_version) == ("3.17.2", "2.9.2")
    assert third.digest != second.digest


@pytest.mark.parametrize(("files", "is_seen"), [(1001, False), (3, True)])
def test_of_very_many_files_that_take_long_a_change_counts_later(
    tmp_path: Path, *, files: int, is_seen: bool
) -> None:
    path = write(tmp_path / "model")
    for number in range(files):
        (path / f"{number}").touch()
    # Each look takes a second; after one at very many, nothing is looked at for five.
    moments = iter([0.0, 1.0, 1.0, 5.9, 6.9, 6.9, 20.0, 21.0, 21.0])
    models = Models(moments.__next__)

    first = models.read(path)
    (path / "MLmodel").write_text(MLFLOW_2_9)
    soon = models.read(path)
    later = models.read(path)

    assert (soon is not first) is is_seen
    assert later.mlflow_version == "2.9.2"


def test_a_model_that_was_removed_is_not_remembered(tmp_path: Path) -> None:
    path = write(tmp_path / "model")
    models = Models(no_time)
    models.read(path)

    path.rename(tmp_path / "elsewhere")

    with pytest.raises(ModelNotFoundError):
        models.read(path)


def test_a_model_that_is_mended_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "model", "flavors: 1\n")
    models = Models(no_time)
    with pytest.raises(ModelInvalidError):
        models.read(path)

    (path / "MLmodel").write_text(MLFLOW_2_9)

    assert models.read(path).mlflow_version == "2.9.2"


@pytest.mark.parametrize("settle_s", [0, 0.1])
def test_every_change_of_a_model_is_seen(tmp_path: Path, settle_s: float) -> None:
    path = write(tmp_path / "model")
    (path / "empty").mkdir()
    (path / "link").symlink_to(tmp_path / "target")
    models = Models(no_time)
    changes = [
        lambda: (path / "empty" / "added").write_text(""),
        lambda: (path / "empty" / "added").rename(path / "empty" / "renamed"),
        (path / "empty" / "renamed").unlink,
        lambda: (tmp_path / "target").write_text("what the link leads to"),
        lambda: (path / "MLmodel").write_text(MLFLOW_2_9),
        (path / "code" / "mine.py").unlink,
    ]

    digests = [models.read(path).digest]
    for change in changes:
        # Right after a directory has changed, its time may not tell the next change.
        time.sleep(settle_s)
        assert models.read(path).digest == digests[-1]
        change()
        digests.append(models.read(path).digest)

    assert len(set(digests)) == len(digests) - 1
    assert digests[0] == digests[3], "it is as it was before something was added"
