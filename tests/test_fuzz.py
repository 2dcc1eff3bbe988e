"""The readers of what strangers wrote, on what nobody would write: nothing escapes.

A reader may refuse, with an error of envd's that is not its own fault. `make test` tries
some; the slow variants, and `ENVD_FUZZ=N` for N times as many, try more.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st

from envd import config, spec
from envd.errors import EnvdError, InternalError
from envd.model import documents
from envd.model import read as read_model
from envd.settings import values
from envd.settings.sections import Security
from envd.spec import (
    Python,
    conda_forge,
    conda_pypi,
    conda_yaml,
    policy,
    requirement,
    requirement_file,
)
from envd.spec.place import Place
from tests.fuzzing import tried

PYTHON = Python("cpython", "3.11.7", "cpython-311-x86_64-linux-gnu", "linux-x86_64", "glibc-2.36")
FEW, MANY = 250, 20 * 250
DEV = policy.of(Security(profile="dev"), {})
SETTINGS = config.load(root=Path("root"), environ={})

YAML_TOKENS = [
    "flavors", "python_function", "loader_module", "env", "conda", "virtualenv", "data", "code",
    "mlflow_version", "utc_time_created", "python_version", "python", "dependencies", "channels",
    "build_dependencies", "pip", "mlflow.sklearn", "3.10", "six==1.0", "-r requirements.txt",
    ": ", ":", "\n", "\n  ", "\n    ", "- ", "\n- ", "\n  - ", "[", "]", "{", "}", ", ", "'", '"',
    "&a ", "*a", "!!str ", "!", "|", ">-", "#", "---\n", "...\n", "%YAML 1.1\n", "? ", "<<: ",
    "null", "~", "\t", "\\", '"\\x00"', '"\\L"', "\0", "\x85", "\u2028", "\ufeff", "\x1b", "9" * 50,
    "::", "=", ">=", "=1.0=py37_0", "https://u:p@host/t/tok/x", "../", "/etc", "model.pkl",
]  # fmt: skip
LINE_TOKENS = [
    "six", "Foo_bar", "numpy", "==", ">=", "<", "~=", "!=", "===", ">", "1.0", "1.*", "2004d",
    "1.0+local", "1!2", "9" * 5_000, ",", "(", ")", "[", "]", "[a,b]", ";", " ;", " ; ", "@", " @ ",
    "python_version", "extra", "os_name", "'", '"', "'3'", " and ", " or ", " not in ", " in ",
    "-r", "-c", "-e", "-i", "-f", " --hash=sha256:", " --hash ", "00", "--index-url", "--pre",
    "--extra-index-url=", "--find-links", "--no-binary", "--only-binary ", ":all:", "--", "-", "=",
    " ", "  ", "\t", "\n", "\r", "\\", "\\\n", "#", " #", "${", "}", "${HOME}", "$", "%2e%2e",
    "https://", "http://", "git+", "git+ssh://", "git+https://", "file://", "file:///", "ssh:",
    "user:pass@", "host", "host:80", "[::1]", "[", "/", "..", "../", "./", ".", "wheels", "pkg",
    "six-1.0-py3-none-any.whl", "-1-", ".whl", ".tar.gz", ".zip", "#egg=", "#subdirectory=",
    "%00", "&", "#sha256=", "\0", "\x1c", "\x85", "\xa0", "\u2028", "\u202e", "\u2100", "\uff0f",
    "é", "requirements.txt", "more.txt", "MLmodel", "::", "*",
]  # fmt: skip

# Over a real file: what is nearly right gets further than noise.
MLMODEL = (
    "flavors:\n  python_function:\n    loader_module: mlflow.sklearn\n    data: model.pkl\n"
    "    env: {conda: conda.yaml, virtualenv: python_env.yaml}\n    python_version: 3.10.1\n"
    "  sklearn: {sklearn_version: 1.0, code: null}\n"
    "mlflow_version: 2.9.2\nutc_time_created: '2024-02-14 10:00:00.1'\nsignature: {inputs: '[]'}\n"
)
CONDA = (
    "name: mlflow-env\nchannels: [conda-forge, https://host/t/token/x]\ndependencies:\n"
    "- python=3.8.5\n- pip<=23\n- conda-forge::scikit-learn>=1.0,<2\n- pip:\n  - mlflow==2.9\n"
    "  - -r requirements.txt\n  - six @ https://u:p@host/six-1.0-py3-none-any.whl\n"
)
LINES = (
    "--extra-index-url https://u:p@host/simple\n--find-links wheels\n-c more.txt\nsix==1.0 "
    "--hash=sha256:00 \\\n  --hash=sha256:11\nnumpy[a,b]>=1.0,<2; python_version<'3.8'\n"
    "git+https://host/repo@ref#egg=foo&subdirectory=sub\n-e ./pkg\n"
    "foo @ https://host/foo-1.0-py3-none-any.whl ; os_name == 'posix'\n./wheels/\n"
)


def mutated(base: str, tokens: list[str]) -> st.SearchStrategy[str]:
    """Return *base* with pieces of it replaced by tokens of its format."""
    edit = st.tuples(st.integers(0, len(base)), st.integers(0, 30), st.sampled_from(tokens))

    def apply(edits: list[tuple[int, int, str]]) -> str:
        text = base
        for start, length, token in edits:
            text = text[:start] + token + text[start + length :]
        return text

    return st.lists(edit, min_size=1, max_size=6).map(apply)


def joined(tokens: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(tokens), max_size=14).map("".join)


def contents(base: str, tokens: list[str]) -> st.SearchStrategy[bytes]:
    texts = mutated(base, tokens) | joined(tokens) | st.text(max_size=60)
    return texts.map(lambda text: text.encode(errors="replace")) | st.binary(max_size=60)


TOML_TOKENS = [
    "[index]", "[models]", "[models.a]", "[models.'a b']", "[[models.a]]", "[security]", "[conda]",
    "[nothing]", "urls", "roots", "uri", "env", "env_file", "gpu", "workers", "memory", "timeout",
    "mirrors", "model_config", "profile", "listen", " = ", "=", "[", "]", "{", "}", ", ", ".", "\n",
    "'", '"', '"""', "#", "true", "auto", "never", "-1", "0", "1e400", "nan", "inf", "9" * 30,
    "100%", "101%", "1.5GiB", "10000y", "30d", "2024-01-01", "https://u:p@host/t/tok/x?q", "file://",
    "unix:", "127.0.0.1:5000", "0.0.0.0:1", "../", "~", "a=https://host", "\\u0000", "\0", "\x1b",
    "\u2028", "é", "models:/", "s3://",
]  # fmt: skip
TOML = (
    "[index]\nurls = ['https://u:p@host/simple', 'name=https://host']\noffline = false\n"
    "[conda]\nmirrors = { conda-forge = ['https://host/t/tok/cf'] }\n[security]\n"
    "profile = 'standard'\nchannels = ['mine']\n[workers]\nmemory = '75%'\nper_model = 'auto'\n"
    "idle_timeout = '15m'\ncpu_limit = 0.5\n[daemon]\nmetrics = '127.0.0.1:9464'\n[models]\n"
    "roots = ['/srv', 's3://bucket/']\nbrief = '/srv/brief'\n[models.long]\nuri = 's3://b/m'\n"
    "env = { KEY = 'pass@' }\ngpu = [0, 1]\nmodel_config = { a = [1, { b = nan }] }\nworkers = 2\n"
)
YAML = contents(MLMODEL, YAML_TOKENS) | contents(CONDA, YAML_TOKENS + LINE_TOKENS)
REQUIREMENTS = contents(LINES, LINE_TOKENS)
LINE = joined(LINE_TOKENS) | st.text(max_size=40)


def fuzz(strategy: st.SearchStrategy[object]) -> Callable[[Callable[..., None]], object]:
    """Run a test on examples of *strategy*: as `test` in a moment, as `slow` in minutes."""

    def decorate(function: Callable[..., None]) -> object:
        @pytest.mark.parametrize("tries", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
        def test(tries: int, folder: Path) -> None:
            tried(tries, strategy, lambda value: refused_or_read(lambda: function(folder, value)))

        test.__name__ = function.__name__
        return test

    return decorate


def refused_or_read(reading: Callable[[], None]) -> None:
    try:
        reading()
    except EnvdError as error:
        refusal = error
    else:
        return
    assert not isinstance(refusal, InternalError)
    # It goes into gRPC messages and logs as it is.
    assert len(refusal.message) < 4_000
    assert refusal.message.isprintable()
    json.dumps(refusal.document(), ensure_ascii=False).encode()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        model = Path(made)
        for name in ("wheels", "pkg"):
            (model / name).mkdir()
        (model / "wheels" / "six-1.0-py3-none-any.whl").write_bytes(b"")
        (model / "more.txt").write_text("numpy<2\n")
        (model / "model.pkl").write_bytes(b"")
        yield model


@fuzz(YAML)
def test_yaml_is_read_or_refused(folder: Path, value: bytes) -> None:
    (folder / "any.yaml").write_bytes(value)
    documents.read(folder, "any.yaml")


@fuzz(contents(CONDA, YAML_TOKENS + LINE_TOKENS))
def test_a_conda_yaml_is_read_or_refused(folder: Path, value: bytes) -> None:
    (folder / "conda.yaml").write_bytes(value)
    found = conda_forge.rewritten(conda_yaml.read(folder, "conda.yaml"), "rewrite")
    notes = conda_yaml.judged(found, DEV)
    assert "u:p@" not in repr((found.channels, found.packages, notes))
    conda_pypi.translated(found)


@fuzz(REQUIREMENTS)
def test_a_requirement_file_is_read_or_refused(folder: Path, value: bytes) -> None:
    (folder / "requirements.txt").write_bytes(value)
    requirement_file.read(folder, "requirements.txt", policy.of(Security(profile="dev"), {}))


@fuzz(LINE)
def test_a_requirement_is_read_or_refused(folder: Path, value: str) -> None:
    requirement.parse(Place(folder, "requirements.txt", 1), value)


@fuzz(LINE)
def test_an_entry_of_a_list_is_read_or_refused(folder: Path, value: str) -> None:
    requirement_file.read_entries(folder, "conda.yaml", [value], DEV)


@fuzz(st.tuples(contents(MLMODEL, YAML_TOKENS), contents(CONDA, YAML_TOKENS + LINE_TOKENS), LINE))
def test_a_model_is_read_or_refused(folder: Path, value: tuple[bytes, bytes, str]) -> None:
    mlmodel, conda, line = value
    with tempfile.TemporaryDirectory(dir=folder) as made:
        model = Path(made)
        (model / "MLmodel").write_bytes(mlmodel)
        (model / "conda.yaml").write_bytes(conda)
        (model / "model.pkl").write_bytes(b"")
        override = [line] if line else []
        found = spec.read(read_model(model), SETTINGS, spec.Terms(tuple(override)))
        assert spec.of(found, PYTHON, SETTINGS.index).key


@fuzz(contents(TOML, TOML_TOKENS))
def test_a_settings_file_is_read_or_refused(folder: Path, value: bytes) -> None:
    (folder / "envd.toml").write_bytes(value)
    found = config.load(root=folder, file=folder / "envd.toml", environ={})
    assert config.from_document(json.loads(json.dumps(config.document(found)))) == found
    assert "pass@" not in repr(found)


VARIABLES = {row.variable: row for row in config.fields()}


@fuzz(st.tuples(st.sampled_from(sorted(VARIABLES)), joined(TOML_TOKENS) | st.text(max_size=20)))
def test_a_variable_is_read_or_refused(folder: Path, value: tuple[str, str]) -> None:
    name, text = value
    row = VARIABLES[name]
    found = config.load(root=folder, environ={name: text, "HOME": str(folder)})
    read = getattr(getattr(found, row.section), row.name)
    assert "tok/" not in values.show(read)
    if isinstance(read, str | tuple):
        assert values.parse(row.type, values.write(read)) == read


@fuzz(LINE)
def test_what_is_read_from_a_line_is_one_line(folder: Path, value: str) -> None:
    found = requirement_file.read_entries(folder, "conda.yaml", [value], DEV)
    options = found.options
    for text in (
        *(text for one in found.requirements for text in (one.text, one.source, *one.hashes)),
        *(options.index_url, *options.extra_index_urls, *options.find_links),
        *(options.only_binary + options.no_binary),
    ):
        assert text.isprintable(), text
        assert "pass@" not in text
