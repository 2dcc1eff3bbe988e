"""The settings: where they come from, what wins, and what is said of a wrong one."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from pathlib import Path

import platformdirs
import pytest

from envd import config
from envd.config import Settings
from envd.errors import SettingsInvalidError
from envd.settings import values
from envd.settings.served import Served
from envd.settings.values import Count, Gpus, Location, ModelUri, Table, Variables


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def load(folder: Path, toml: str = "", **variables: str) -> Settings:
    """Load the settings of a file that holds *toml*, and of *variables*."""
    file = folder / "envd.toml"
    file.write_text(toml)
    return config.load(file=file, environ=variables)


def refusal(folder: Path, toml: str = "", **variables: str) -> SettingsInvalidError:
    with pytest.raises(SettingsInvalidError) as caught:
        load(folder, toml, **variables)
    return caught.value


def test_without_a_file_or_variables_there_are_the_defaults(tmp_path: Path) -> None:
    found = config.load(environ={})

    assert found == Settings(tmp_path / "state" / "envd")
    assert found.root == config.default_root()


def test_a_file_sets_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        """
        [index]
        urls = ["https://a/simple", "https://b/simple"]
        offline = true
        [workers]
        idle_timeout = "5m"
        """,
    )

    assert found.index.urls == ("https://a/simple", "https://b/simple")
    assert found.index.offline
    assert found.workers.idle_timeout == 300
    assert found.workers.stop_grace == Settings(tmp_path).workers.stop_grace
    assert found.python == Settings(tmp_path).python


def test_a_variable_goes_before_the_file(tmp_path: Path) -> None:
    toml = "[python]\nmatch = 'exact'\ndownload = 'never'\n"

    found = load(tmp_path, toml, ENVD_PYTHON__MATCH="minor")

    assert (found.python.match, found.python.download) == ("minor", "never")


def test_the_file_is_named_by_the_argument_then_the_variable_then_lies_at_home(
    tmp_path: Path,
) -> None:
    home = platformdirs.user_config_path("envd") / "config.toml"
    home.parent.mkdir(parents=True)
    seconds = {home: 1, tmp_path / "variable.toml": 2, tmp_path / "argument.toml": 3}
    for path, value in seconds.items():
        path.write_text(f"[daemon]\ndrain = {value}\n")
    variables = {"ENVD_CONFIG": str(tmp_path / "variable.toml")}

    by_argument = config.load(file=tmp_path / "argument.toml", environ=variables)
    by_variable = config.load(environ=variables)
    at_home = config.load(environ={})

    assert [one.daemon.drain for one in (by_argument, by_variable, at_home)] == [3, 2, 1]


def test_the_root_is_the_argument_then_the_variable(tmp_path: Path) -> None:
    variables = {"ENVD_ROOT": str(tmp_path / "variable")}

    by_argument = config.load(root=tmp_path / "argument", environ=variables)
    by_variable = config.load(environ=variables)
    empty = config.load(environ={"ENVD_ROOT": ""})

    assert by_argument.root == tmp_path / "argument"
    assert by_variable.root == tmp_path / "variable"
    assert empty.root == config.default_root()


def test_the_root_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    assert config.load(environ={"ENVD_ROOT": "~/envd"}).root == tmp_path / "home" / "envd"
    assert config.load(root=Path("here"), environ={}).root == Path.cwd() / "here"


def test_other_variables_are_none_of_the_settings(tmp_path: Path) -> None:
    found = load(tmp_path, ENVD_SOCKET="x", ENVD_ROOT=str(tmp_path), PATH="y", OTHER__KEY="z")

    assert found == Settings(tmp_path)


@pytest.mark.parametrize(
    ("toml", "line", "key"),
    [
        ("[index]\nurl = []\n", 2, "[index] url"),
        ("[index]\nurls = []\n\n[workers] # here\nidle = 1\n", 5, "[workers] idle"),
        ("# first\n[nowhere]\nkey = 1\n", 3, "[nowhere] key"),
        ("\nroot = '/'\n", 2, "root"),
        ("\nindex = 1\n", 2, "index"),
        ("\n[[index]]\nurls = []\n", 2, "index"),
    ],
)
def test_an_unknown_setting_is_told_with_its_line(
    tmp_path: Path, toml: str, line: int, key: str
) -> None:
    error = refusal(tmp_path, toml)

    assert error.message == (
        f"{tmp_path}/envd.toml:{line}: there is no setting `{key}`; see `envctl config`"
    )
    assert error.metadata["setting"] == key


@pytest.mark.parametrize("variable", ["ENVD_INDEX__URL", "ENVD_NOWHERE__KEY", "ENVD__"])
def test_an_unknown_variable_is_told(tmp_path: Path, variable: str) -> None:
    error = refusal(tmp_path, **{variable: "1"})

    assert f"there is no setting `{variable}`" in error.message


@pytest.mark.parametrize(
    ("section", "value", "why"),
    [
        ("index.urls", "1", "give a list of texts"),
        ("index.urls", "[1, 2]", "give a list of texts"),
        ("index.urls", "['a.org/simple']", "give URLs"),
        ("index.urls", "['git+https://a.org/simple']", "give URLs"),
        ("index.urls", "['https://a https://b']", "give URLs"),
        ("security.indexes", "['a.org']", "give URLs"),
        ("security.sources", "['https://a.org', 'github.com/a']", "give URLs"),
        ("index.offline", "'maybe'", "give `true` or `false`"),
        ("index.offline", "2", "give `true` or `false`"),
        ("python.match", "'major'", "give one of `minor`, `exact`"),
        ("python.match", "['minor']", "give one of `minor`, `exact`"),
        ("models.tracking_uri", "1", "give a text"),
        ("workers.idle_timeout", "'soon'", "give a number with a unit, as in `60s`"),
        ("workers.idle_timeout", "-1", "give a number with a unit"),
        ("workers.idle_timeout", "'1 week'", "give a number with a unit"),
        ("workers.idle_timeout", "true", "give a number with a unit"),
        ("workers.idle_timeout", "inf", "give a number with a unit"),
        ("workers.idle_timeout", "''", "give a number with a unit"),
        ("daemon.max_message", "'64 m'", "give a number with a unit, as in `64MiB`"),
        ("daemon.max_message", "9223372036854775808", "give less than"),
        ("workers.idle_timeout", "'\u0663d'", "give a number with a unit"),
        ("workers.idle_timeout", "'9999999999999d'", "give `never`"),
        ("daemon.max_message", "'60s'", "give a number with a unit"),
        ("daemon.metrics", "'0.0.0.0:9464'", "give a port of this machine's own"),
        ("daemon.metrics", "'127.0.0.1'", "give a port of this machine's own"),
        ("daemon.metrics", "'localhost:65536'", "give a port of this machine's own"),
        ("build.at_once", "0", "give a whole number, from 1 to 999999999"),
        ("build.at_once", "1.5", "give a whole number, from 1 to 999999999"),
        ("gc.keep", "-1", "give a whole number, from 0 to 999999999"),
        ("gc.keep", "'never'", "give a whole number, from 0 to 999999999"),
        ("gc.min_free", "'101%'", "give a number with a unit, as in `10%` or `20GB`"),
        ("gc.min_free", "'-1%'", "give a number with a unit"),
        ("gc.min_free", "'9999999999TiB'", "give less than 8,000,000 TiB"),
        ("gc.max_size", f"'{'9' * 400}'", "give less than 8,000,000 TiB"),
        ("gc.min_free", "'never'", "give a number with a unit"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_with_its_line(
    tmp_path: Path, section: str, value: str, why: str
) -> None:
    table, _, key = section.partition(".")

    error = refusal(tmp_path, f"# first\n[resolve]\nrepair = true\n[ {table} ]\n{key} = {value}\n")

    assert error.message.startswith(f"{tmp_path}/envd.toml:5: `{section}` cannot be ")
    assert why in error.message
    assert error.metadata == {"setting": section}


def test_a_wrong_variable_is_told_by_its_name(tmp_path: Path) -> None:
    error = refusal(tmp_path, ENVD_BUILD__LINK_MODE="hard")

    assert error.message.startswith("ENVD_BUILD__LINK_MODE: `build.link_mode` cannot be 'hard'; ")


@pytest.mark.parametrize("content", [b"[index\n", b"a = 1\na = 2\n", b"\xff", None])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "envd.toml"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(SettingsInvalidError, match="cannot read the settings file") as caught:
        config.load(file=file, environ={})

    assert caught.value.metadata == {"file": str(file)}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("0s", 0), ("60", 60), ("60s", 60), ("1.5 s", 1.5), ("250ms", 0.25), ("5m", 300),
     ("2h", 7200), ("30d", 2_592_000)],
)  # fmt: skip
def test_a_duration_has_a_unit(tmp_path: Path, text: str, seconds: float) -> None:
    found = load(tmp_path, f"[daemon]\ndrain = '{text}'\n", ENVD_BUILD__TIMEOUT=text)

    assert (found.daemon.drain, found.build.timeout) == (seconds, seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("1B", 1), ("20GB", 20 * 10**9), ("20 GiB", 20 << 30),
     ("1kB", 1000), ("1KiB", 1024), ("1.5MiB", 3 << 19), ("2TB", 2 * 10**12)],
)  # fmt: skip
def test_a_size_has_a_unit(tmp_path: Path, text: str, size: int) -> None:
    found = load(tmp_path, ENVD_DAEMON__MAX_MESSAGE=text)

    assert found.daemon.max_message == size
    assert isinstance(found.daemon.max_message, int)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("0%", 0), ("10%", 200), ("2.5 %", 50), ("100%", 2000), ("2kB", 2000),
     ("1 KiB", 1024)],
)  # fmt: skip
def test_a_share_is_a_percentage_or_a_size(tmp_path: Path, text: str, size: int) -> None:
    found = load(tmp_path, f"[gc]\nmin_free = '{text}'\n")

    assert values.share(found.gc.min_free, 2000) == size


def test_never_is_a_duration_that_is_not_over(tmp_path: Path) -> None:
    found = load(tmp_path, "[gc]\nunused_for = 'never'\n", ENVD_BUILD__TIMEOUT="never")

    assert found.gc.unused_for == found.build.timeout == math.inf
    assert values.show(found.gc.unused_for) == "never"


def test_a_count_is_a_whole_number(tmp_path: Path) -> None:
    found = load(tmp_path, "[build]\nat_once = 3\n[gc]\nkeep = '0'\n")

    assert (found.build.at_once, found.gc.keep) == (3, 0)


def test_a_number_needs_no_quotes(tmp_path: Path) -> None:
    found = load(tmp_path, "[daemon]\ndrain = 1.5\nmax_message = 100\n")

    assert (found.daemon.drain, found.daemon.max_message) == (1.5, 100)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("https://a", ("https://a",)),
        ("https://a,HTTP://b:8080/x", ("https://a", "HTTP://b:8080/x")),
        (" own=https://u:p@a , file:///b ,", ("own=https://u:p@a", "file:///b")),
    ],
)
def test_a_list_is_separated_by_commas_in_a_variable(
    tmp_path: Path, text: str, expected: tuple[str, ...]
) -> None:
    assert load(tmp_path, ENVD_INDEX__URLS=text).index.urls == expected


@pytest.mark.parametrize(
    "variable", ["ENVD_INDEX__URLS", "ENVD_SECURITY__INDEXES", "ENVD_SECURITY__SOURCES"]
)
def test_a_list_in_a_variable_is_not_written_as_in_the_file(tmp_path: Path, variable: str) -> None:
    error = refusal(tmp_path, **{variable: '["https://a","https://b"]'})

    assert "in a variable, commas separate the items of a list" in error.message


def test_prefixes_are_the_beginnings_of_urls(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        "[security]\nindexes = ['https://a.org/own']\n",
        ENVD_SECURITY__SOURCES="git+https://a.org/b/,file:///c,https://",
    )

    assert found.security.indexes == ("https://a.org/own",)
    assert found.security.sources == ("git+https://a.org/b/", "file:///c", "https://")


@pytest.mark.parametrize(
    "text",
    [
        "https://me:s3cret@a.org/simple https://b",
        "https://b,me:s3cret@a.org/simple",
        "https://me:x,s3cret@a.org/simple",
        "https://me:x/s3cret y@a.org/simple",
        '["https://b","https://s3cret@a.org"]',
        "s3cret@a.org",
    ],
)
def test_a_refused_url_is_told_without_its_password(tmp_path: Path, text: str) -> None:
    errors = [
        refusal(tmp_path, f"[index]\nurls = ['https://a', '{text} ']\n"),
        refusal(tmp_path, ENVD_INDEX__URLS=text),
        refusal(tmp_path, ENVD_SECURITY__SOURCES=text),
    ]

    for error in errors:
        assert "***@" in error.message
        assert "s3cret" not in f"{error.message}{error.metadata}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("true", True), ("True", True), ("1", True), ("yes", True), ("false", False), ("0", False),
     ("no", False)],
)  # fmt: skip
def test_a_switch_takes_several_words(tmp_path: Path, text: str, *, expected: bool) -> None:
    toml = f"[index]\noffline = {str(not expected).lower()}\n"

    assert load(tmp_path, toml, ENVD_INDEX__OFFLINE=text).index.offline is expected


def test_the_table_has_every_field_of_every_section_with_a_meaning() -> None:
    sections = typing.get_type_hints(Settings)
    del sections["root"], sections["served"], sections["places"]
    expected = [
        (section, row.name) for section, cls in sections.items() for row in dataclasses.fields(cls)
    ]

    table = list(config.fields())

    assert [(row.section, row.name) for row in table] == expected
    assert all(row.meaning.endswith(".") and len(row.meaning) > 10 for row in table)
    assert len({row.variable for row in table}) == len(table)


def test_every_default_is_shown_as_its_variable_takes_it(tmp_path: Path) -> None:
    variables = {row.variable: values.show(row.default) for row in config.fields()}

    found = load(tmp_path, ENVD_ROOT=str(tmp_path), **variables)

    assert found == Settings(tmp_path)


CHANGED = {
    "ENVD_INDEX__URLS": "https://a,https://b",
    "ENVD_INDEX__NO_INDEX": "true",
    "ENVD_BUILD__TIMEOUT": "1.5",
    "ENVD_BUILD__LINK_MODE": "copy",
    "ENVD_PYTHON__ROOTS": "/a",
    "ENVD_MODELS__TRACKING_URI": "https://c",
    "ENVD_DAEMON__MAX_MESSAGE": "1KiB",
    "ENVD_GC__UNUSED_FOR": "never",
    "ENVD_GC__MIN_FREE": "1GB",
    "ENVD_WORKERS__PER_MODEL": "auto",
}


def test_settings_survive_their_document(tmp_path: Path) -> None:
    found = load(tmp_path, WINE, ENVD_ROOT=str(tmp_path), **CHANGED)

    again = config.from_document(json.loads(json.dumps(config.document(found))))

    assert again == found
    assert again != Settings(tmp_path)


WINE = """
[models.wine]
uri = "models:/wine@champion"
env = { TOKEN = "s3cret", MODE = "" }
env_file = "/run/secrets/wine"
preload = true
check = false
workers = "auto"
gpu = [0, "1"]
batch = true
max_batch = 8
template = false
queue = 10
concurrency = 4
[models.wine.model_config]
temperature = 0.5
stop = ["a", { deep = true }]
"""


def test_a_model_has_a_name_in_short_or_with_a_table_of_its_own(tmp_path: Path) -> None:
    found = load(tmp_path, f"[models]\nrefresh = '5m'\niris = './iris'\n{WINE}")

    assert found.models.refresh == 300
    assert found.served == (
        Served("iris", ModelUri(f"{Path.cwd()}/iris")),
        Served(
            "wine",
            ModelUri("models:/wine@champion"),
            env=Variables((("TOKEN", "s3cret"), ("MODE", ""))),
            env_file=Location("/run/secrets/wine"),
            preload=True,
            check=False,
            workers="auto",
            gpu=Gpus("0,1"),
            batch=True,
            max_batch=Count(8),
            template=False,
            queue=Count(10),
            concurrency=Count(4),
            model_config=Table('{"stop": ["a", {"deep": true}], "temperature": 0.5}'),
        ),
    )


def test_a_served_model_is_shown_to_nobody_with_its_variables(tmp_path: Path) -> None:
    found = load(tmp_path, WINE)

    assert "s3cret" not in repr(found)
    assert "s3cret" in json.dumps(config.document(found))
    assert config.digest(found) == config.digest(load(tmp_path))


@pytest.mark.parametrize(
    ("toml", "line", "why"),
    [
        ("[models]\niris = 1", 2, "`models.iris.uri` cannot be 1; give a text"),
        ("[models]\niris = 'wine'", 2, "give a directory, with a `/` in it, or a URI"),
        ("[models]\ntracking_url = 'https://a'", 2, "there is no setting `[models] tracking_url`"),
        ("[models]\n\n'a/b' = '/a'", 3, "'a/b' is no name for a model"),
        ("[models.'.a']\nuri = '/a'", 1, "'.a' is no name for a model"),
        ("[models.iris]\n", 1, "`[models.iris]` has no `uri`"),
        ("[models.iris]\nuri = '/a'\nworker = 1", 3, "no setting `[models.iris] worker`"),
        ("[models]\niris = { uri = '/a', worker = 1 }", 2, "no setting `[models.iris] worker`"),
        ("[models.'my iris']\nuri = '/a'\n[models.'my iris'.evn]\nA = ''", 3, "my iris] evn`"),
        ("[models.iris]\nuri = '/a'\nworkers = 'many'", 3, "give `auto` or a whole number, from 1"),
        ("[models.iris]\nuri = '/a'\nworkers = 0", 3, "give `auto` or a whole number, from 1"),
        ("[models.iris]\nuri = '/a'\nbatch = 'perhaps'", 3, "give `true` or `false`"),
        ("[models.iris]\nuri = '/a'\nmax_batch = 0", 3, "give a whole number, from 1"),
        ("[models.iris]\nuri = '/a'\ngpu = 'a b'", 3, "give the numbers of GPUs"),
        ("[models.iris]\nuri = '/a'\nmodel_config = [1]", 3, "give a table of what JSON has"),
        ("[models.iris]\nuri = '/a'\nmodel_config = { a = nan }", 3, "a table of what JSON has"),
        ("[models.iris]\nuri = '/a'\nmodel_config = { a = 2020-01-01 }", 3, "what JSON has"),
        ("[models.refresh]\nuri = '/a'", 1, "`models.refresh` cannot be"),
    ],
)
def test_a_served_model_that_cannot_be_is_told_with_its_line(
    tmp_path: Path, toml: str, line: int, why: str
) -> None:
    error = refusal(tmp_path, toml)

    assert error.message.startswith(f"{tmp_path}/envd.toml:{line}: ")
    assert why in error.message


@pytest.mark.parametrize(
    "env", ["'TOKEN=s3cret'", "{ TOKEN = ['s3cret'] }", "{ 'TO-KEN' = 's3cret' }", "['s3cret']"]
)
def test_variables_that_cannot_be_are_told_without_their_values(tmp_path: Path, env: str) -> None:
    error = refusal(tmp_path, f"[models.iris]\nuri = '/a'\nenv = {env}\n")

    assert error.message.startswith(f"{tmp_path}/envd.toml:3: `models.iris.env` cannot be what")
    assert "s3cret" not in f"{error.message}{error.metadata}"


def test_only_the_named_variables_are_passed_in_either_case() -> None:
    environ = {"https_proxy": "a", "HTTPS_PROXY": "b", "PATH": "c", "SECRET": "d", "PATHS": "e"}

    found = config.passed(("PATH", "HTTPS_PROXY", "HOME"), environ)

    assert found == {"https_proxy": "a", "HTTPS_PROXY": "b", "PATH": "c"}
