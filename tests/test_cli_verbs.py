"""The verbs that look after the cache: what each takes, does and says, alone and with a daemon."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from envd.cli.run import inside
from tests import tiny as wheels
from tests.called import Called
from tests.conftest import (
    Envctl,
    environment,
    is_running,
    lose_interpreter,
    one_python,
    wait_for,
)
from tests.tiny import Tiny

VERBS = (
    "build",
    "cancel",
    "gc",
    "list",
    "logs",
    "migrate",
    "models list",
    "models load",
    "models show",
    "models unload",
    "pin",
    "rm",
    "run",
    "show",
    "unpin",
    "verify",
)
ABSENT_ID = "0123456789abcdef"


@pytest.fixture(scope="module")
def either(either: Envctl) -> Envctl:
    return Called(either.root, either.env)


@pytest.fixture(scope="module")
def more_settings(tools: Path) -> dict[str, str]:
    return one_python(tools)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, home: Path, tiny: Tiny) -> Called:
    """Envctl on a root of the module's, for what a daemon has no part in."""
    root = tmp_path_factory.mktemp("alone") / "root"
    return Called(root, environment(root, home, **tiny.settings))


@pytest.fixture
def called(tmp_path: Path, envctl: Envctl) -> Called:
    """Envctl on an empty root, without a daemon."""
    return Called(tmp_path / "root", envctl.env)


def built(envctl: Envctl, model: Path) -> str:
    done = envctl("build", "-m", model, "--json")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["id"])


def ids(envctl: Envctl, *options: str) -> list[str]:
    return [one["id"] for one in documents(envctl, "list", *options)]


def documents(envctl: Envctl, *arguments: object) -> Any:
    done = envctl(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def prefix(envctl: Envctl, env_id: str) -> Path:
    return Path(documents(envctl, "show", env_id)["prefix"])


@contextlib.contextmanager
def background(
    envctl: Envctl, *arguments: object, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Run envctl in a process of its own until the block is left."""
    with subprocess.Popen(
        envctl.argv(*arguments), env=envctl.env, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **options,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def ran(envctl: Envctl, model: Path, *argv: object, **options: Any) -> tuple[int, str, str]:
    """Run a command inside the environment of *model*: its status, its output, its talk."""
    with background(envctl, "run", "-m", model, "--", *argv, **options) as process:
        output, talk = process.communicate(timeout=120)
    return process.returncode, output, talk


def slow_model(tiny: Tiny, folder: Path) -> Path:
    """Write a model whose build lasts until there is a file `gate` in *folder*."""
    model = tiny.model(folder / "slow", "./pkg")
    gate = folder / "gate"
    build = (
        f"while not os.path.exists({str(gate)!r}): time.sleep(0.02)\n"
        # Another folder, another environment.
        f"    MODULE = 'FOLDER = 0  # {folder}'"
    )
    wheels.tree(model / "pkg", "tiny-a", "1.5", build)
    return model


def under_way(envctl: Envctl) -> str:
    """Return the spec key of the one build that goes on."""
    found: list[dict[str, Any]] = []

    def look() -> list[dict[str, Any]]:
        found[:] = [one for one in documents(envctl, "list", "--all") if one["state"] == "building"]
        return found

    wait_for(look)
    (one,) = found
    return str(one["spec_key"])


# What is said and taken, which needs no environment.


def test_settings_are_shown_as_they_may_be_written(called: Called, tmp_path: Path) -> None:
    file = tmp_path / "envd.toml"
    file.write_text("""\
[build]
timeout = 5400
[gc]
max_size = "30000000000"
[models.slow]
uri = "/models/slow"
time_limit = "never"
memory_limit = "4GB"
""")

    text = called("config", "--config", file).stdout
    document = called("config", "--config", file, "--json").stdout

    for line in (
        "* ENVD_BUILD__TIMEOUT=90m",
        "* ENVD_GC__MAX_SIZE=30GB",
        "  ENVD_BUILD__RESERVE=1GiB",
        "  ENVD_WORKERS__MAX_AGE=never",
        "  ENVD_BUILD__MEMORY_LIMIT=0",
        "  ENVD_INDEX__OFFLINE=false",
        '* [models.slow] time_limit = "never"',
        '* [models.slow] memory_limit = "4GB"',
    ):
        assert f"{line}\n" in text, line

    def refuse(constant: str) -> object:
        raise ValueError(constant)

    found = json.loads(document, parse_constant=refuse)
    assert found["models"]["slow"] == {
        "uri": "/models/slow", "time_limit": "never", "memory_limit": 4 * 10**9,
    }  # fmt: skip
    assert found["settings"]["build.timeout"]["value"] == 5400


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches_by_examples(called: Called, verb: str) -> None:
    done = called(*verb.split(), "--help")

    assert done.returncode == 0
    assert f"Examples:\n    envctl {verb}" in done.stdout
    assert ("--json" in done.stdout) == (verb != "run")
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("gc", "--max-age", "a while"), "`60s` or `30d`"),
        (("gc", "--unused-for", "7 weeks"), "`60s` or `30d`"),
        (("gc", "--max-size", "20 potatoes"), "`64MiB` or `20GB`"),
        (("gc", "--min-free", "110%"), "`10%` or `20GB`"),
        (("gc", "--keep", "-1"), "from 0 to"),
        (("list", "--sort", "color"), "'used'"),
        (("list", "--filter", "color=red"), "`manager=`"),
        (("list", "--filter", "state"), "`state=`"),
        (("list", "--filter", "pinned=maybe"), "`yes` or `no`"),
        (("list", "--filter", "state=FAILED"), "`deleting` or `failed`"),
        (("gc", "--max-size", "9223372036854775808"), "give less than"),
        (("gc", "--unused-for", "99999999999d"), "give `never`"),
        (("run", "-m", "model"), "CMD"),
        (("run", "-m", "model", "--"), "CMD"),
        (("run", "--", "python"), "--model"),
        (("rm",), "ID"),
        (("pin",), "ID"),
        (("unpin",), "ID"),
        (("cancel",), "ID"),
        (("logs", "-f"), "ID"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error_that_says_what_to_give(
    called: Called, arguments: tuple[str, ...], says: str
) -> None:
    done = called(*arguments)

    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "verb", ["cancel", "logs", "migrate", "pin", "rm", "show", "unpin", "verify"]
)
def test_an_id_that_is_not_here_is_said_to_be_so(either: Envctl, verb: str) -> None:
    done = either(verb, ABSENT_ID)

    assert done.returncode == 1
    assert ABSENT_ID in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_gets_the_callers_variables_and_the_environments_programs() -> None:
    given = {"PATH": "/usr/bin", "HOME": "/home/me", "PYTHONPATH": "/mine", "PYTHONHOME": "/usr"}

    variables = {"VIRTUAL_ENV": "/prefix"}
    given |= {"PYTHONSTARTUP": "/mine.py"}

    assert inside(Path("/prefix"), variables, given) == {
        "PATH": "/prefix/bin:/usr/bin",
        "HOME": "/home/me",
        "VIRTUAL_ENV": "/prefix",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


# list and show


def test_the_list_can_be_sorted_and_filtered(either: Envctl, tiny: Tiny, tmp_path: Path) -> None:
    either("gc", "--max-age", "0s")
    large = built(either, tiny.model(tmp_path / "large", "tiny-a==1.0", "tiny-b"))
    small = built(either, tiny.model(tmp_path / "small", "tiny-a==2.0"))
    either("predict", "-m", tmp_path / "large", stdin='{"inputs": [1]}')
    both, by_id = [large, small], sorted([large, small])
    version = "{}.{}".format(*sys.version_info)

    assert ids(either) == both
    assert ids(either, "--sort", "uses") == both
    assert ids(either, "--sort", "created") == [small, large]
    assert ids(either, "--sort", "size") == both
    assert ids(either, "--sort", "id") == by_id
    assert ids(either, "--filter", f"model={tmp_path}/large") == [large]
    assert ids(either, "--sort", "id", "--filter", f"python={version}") == by_id
    assert ids(either, "--filter", "python=2.7") == []
    assert ids(either, "--filter", "manager=conda") == []
    assert ids(either, "--filter", "state=ready", "--filter", "model=small") == [small]
    either("pin", small[:8])
    assert ids(either, "--filter", "pinned=yes") == [small]
    assert ids(either, "--filter", "pinned=no") == [large]
    either("unpin", small[:8])
    assert {one["id"]: one["uses"] for one in documents(either, "list")} == {large: 1, small: 0}


def test_the_table_has_a_line_per_environment(either: Envctl, tiny: Tiny, tmp_path: Path) -> None:
    env_id = built(either, tiny.model(tmp_path / "[bold]model", "tiny-a==1.0"))
    either("pin", env_id)

    done = either("list", "--filter", f"model={tmp_path}")
    nothing = either("list", "--filter", "model=no such model")

    header, line = done.stdout.splitlines()
    assert header.split() == [
        "ID", "STATE", "MANAGER", "PYTHON", "SIZE", "OWN", "CREATED", "USED", "USES", "LEASES",
        "PIN", "MODELS",
    ]  # fmt: skip
    assert line.startswith(f"{env_id[:12]}  ready  virtualenv  ")
    assert " pinned  " in line
    assert line.endswith(f"{tmp_path}/[bold]model")
    assert "\x1b" not in done.stdout
    assert (nothing.stdout, nothing.returncode) == ("", 0)
    assert "no environment fits" in nothing.stderr
    either("unpin", env_id)


def test_a_failure_is_listed_on_request_and_says_when_it_is_tried_again(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", "no-such-package==7")
    key = json.loads(either("build", "-m", model, "--json").stdout)["spec_key"]

    listed = documents(either, "list", "--all")
    table = either("list", "--all", "--filter", "state=failed").stdout
    shown = either("show", key[:10])

    (failed,) = [one for one in listed if one["spec_key"] == key]
    assert (failed["id"], failed["state"], failed["uses"]) == (None, "failed", 0)
    assert failed["failure"]["reason"] == "SOLVE_FAILED"
    assert 0 < failed["failure"]["retry_after_s"] <= 3600
    assert None not in ids(either)
    (line,) = [one for one in table.splitlines() if one.startswith(key[:12])]
    assert "failed: SOLVE_FAILED, again in 59 min" in line
    assert shown.returncode == 0, shown.stderr
    assert "SOLVE_FAILED (spec)" in shown.stdout
    assert "no-such-package" in shown.stdout
    assert "in 59 min, or at once with `envctl build --retry`" in shown.stdout


def test_a_model_whose_path_would_do_something_to_a_terminal_is_shown_in_one_line(
    called: Called, tiny: Tiny, tmp_path: Path
) -> None:
    env_id = built(called, tiny.model(tmp_path / "red\x1b[31m\r\nmodel", "tiny-a==1.0"))

    said = [called("list").stdout, called("show", env_id).stdout]

    for text in said:
        assert "red\\x1b[31m\\r\\nmodel" in text
        assert "\x1b[31m" not in text


def test_a_failure_is_answered_again_unless_it_is_to_be_retried(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", "no-such-package==8")

    first = either("build", "-m", model)
    again = either("build", "-m", model)
    retried = either("build", "-m", model, "--retry")

    assert [one.returncode for one in (first, again, retried)] == [1, 1, 1]
    assert "locking: " in first.stderr
    assert "locking: " not in again.stderr
    assert "not tried again for 59 min, unless with --retry" in again.stderr
    assert "locking: " in retried.stderr


# gc, pin and rm


def test_gc_says_what_would_go_and_then_removes_it(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    either("gc", "--max-age", "0s")
    kept = built(either, tiny.model(tmp_path / "kept", "tiny-a==1.0"))
    gone = built(either, tiny.model(tmp_path / "gone", "tiny-a==2.0"))
    assert either("pin", kept[:8]).stdout == f"{kept} pinned\n"

    asked = documents(either, "gc", "--max-age", "0s", "--dry-run")
    said = either("gc", "--max-age", "0s", "--dry-run")
    assert {kept, gone} <= set(ids(either))
    done = either("gc", "--max-age", "0s")

    count = len(asked["environments"])
    assert asked.keys() == {"dry_run", "freed_bytes", "environments", "downloads"}
    assert asked["dry_run"] is True
    assert asked["downloads"].keys() == {"bytes", "freed_bytes", "in_use"}
    verdicts = {one["id"]: one for one in asked["environments"]}
    assert (verdicts[kept]["verdict"], verdicts[kept]["reason"]) == ("keep", "pinned")
    assert verdicts[gone]["verdict"] == "remove"
    assert verdicts[gone]["reason"].startswith("built ")
    assert asked["freed_bytes"] >= verdicts[gone]["bytes_exclusive"] > 0
    assert all(one["bytes_shared"] >= 0 for one in verdicts.values())
    assert said.stdout.splitlines()[0].split() == ["ID", "VERDICT", "OWN", "SHARED", "WHY"]
    assert said.stdout.splitlines()[-1].startswith(f"1 of {count} environments would be removed, ")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"1 of {count} environments removed, ")
    assert gone not in ids(either)
    assert kept in ids(either)
    assert either("unpin", kept[:8]).stdout == f"{kept} unpinned\n"


def test_gc_that_keeps_everything_has_done_its_work(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    env_id = built(either, tiny.model(tmp_path / "model", "tiny-a==1.0"))
    either("gc", "--max-age", "never", "--unused-for", "never", "--max-size", "1TB")

    done = either("gc", "--max-age", "30d", "--max-size", "1TB", "--min-free", "0", "--keep", "3")

    assert done.returncode == 0, done.stderr
    assert env_id in ids(either)
    assert done.stdout.splitlines()[-1].startswith("0 of ")


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_gc_where_nothing_is_yet_leaves_nothing(called: Called, options: tuple[str, ...]) -> None:
    done = called("gc", *options)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("0 of 0 environments")
    assert not called.root.exists()


def test_what_is_pinned_is_removed_by_force_only(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    env_id = built(either, tiny.model(tmp_path / "model", "tiny-a==1.0"))
    (pinned,) = documents(either, "pin", env_id[:8])

    refused = either("rm", env_id[:8])
    forced = either("rm", env_id[:8], "--force")

    assert (pinned["id"], pinned["pinned"]) == (env_id, True)
    assert refused.returncode == 1
    assert "unpin" in refused.stderr
    assert forced.returncode == 0, forced.stderr
    assert forced.stdout.startswith(f"{env_id} removed")
    assert env_id not in ids(either)


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        (("pin",), "{} pinned"),
        (("unpin",), "{} unpinned"),
        (("verify",), "{}  ok"),
        (("rm",), "{} removed, "),
        (("rm", "--force"), "{} removed, "),
    ],
)
def test_what_fails_does_not_stop_the_others(
    either: Envctl, tiny: Tiny, tmp_path: Path, verb: tuple[str, ...], said: str
) -> None:
    models = [tiny.model(tmp_path / "one"), tiny.model(tmp_path / "other", "tiny-a", "tiny-b")]
    one, other = [built(either, model) for model in models]

    done = either(*verb, one, ABSENT_ID, other)
    for model in models:
        built(either, model)
    told = either(*verb, ABSENT_ID, one, "0", other, "--json")

    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(map(str.startswith, lines, [said.format(one), said.format(other)]))
    assert f"{ABSENT_ID}: no environment's id begins with `{ABSENT_ID}`; see" in done.stderr
    # A request that is wrong is usage, whatever failed besides.
    assert told.returncode == 2
    found = json.loads(told.stdout)
    assert [each["id"] for each in found] == [ABSENT_ID, one, "0", other]
    reasons = [each["error"] and each["error"]["reason"] for each in found]
    assert reasons == ["ENVIRONMENT_NOT_FOUND", None, "REQUEST_INVALID", None]


# verify


def test_verify_names_every_fault_and_repairs_it(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    either("gc", "--max-age", "0s")
    one = built(either, tiny.model(tmp_path / "one", "tiny-a==1.0"))
    other = built(either, tiny.model(tmp_path / "other", "tiny-a==1.0", "tiny-b"))
    assert either("verify").stdout.splitlines() == [
        f"{env_id}  ok" for env_id in sorted([one, other])
    ]
    site = next(prefix(either, one).glob("lib/python*/site-packages"))
    inside_prefix = site.relative_to(prefix(either, one))
    # Whoever writes to a file writes to all its names.
    with (site / "tiny_a.py").open("r+b") as file:
        file.write(b"X")
    (site / "stray.pth").write_text("import os\n")
    shutil.rmtree(next(site.glob("tiny_a-*.dist-info")))

    found = either("verify", one[:8])
    everything = either("verify")
    (document,) = json.loads(either("verify", one, "--json").stdout)
    repaired = either("verify", "--repair")
    after = either("verify")

    assert found.returncode == everything.returncode == 1
    lines = found.stdout.splitlines()
    assert lines[0].startswith(f"{one}  ")
    assert lines[0].endswith(" faults")
    assert any(line.startswith(f"  changed {inside_prefix}/tiny_a.py: ") for line in lines)
    assert any(line.startswith(f"  added   {inside_prefix}/stray.pth") for line in lines)
    assert any(line.startswith(f"  missing {inside_prefix}/tiny_a-1.0.dist-info") for line in lines)
    assert f"  also in: {other}" in lines
    assert "--repair" in found.stderr
    assert f"  also in: {one}" in everything.stdout
    assert (document["id"], document["repaired"]) == (one, False)
    assert document["also_affected"] == [other]
    assert {fault["kind"] for fault in document["faults"]} == {"changed", "added", "missing"}
    assert repaired.returncode == 0, repaired.stderr
    assert repaired.stdout.count("built anew") == 2
    assert (after.returncode, after.stdout.count("  ok")) == (0, 2)


def test_what_is_absent_is_at_fault_as_a_whole(called: Called, tiny: Tiny, tmp_path: Path) -> None:
    env_id = built(called, tiny.model(tmp_path / "model", "tiny-a==1.0"))
    lose_interpreter(called.root / "environments" / env_id / "ready.json")

    found = called("verify")
    listed = called("verify", "--json")
    (document,) = json.loads(listed.stdout)

    assert found.returncode == listed.returncode == 1
    assert found.stdout.splitlines()[0] == f"{env_id}  1 fault"
    assert "is gone or has changed; the next use builds it again" in found.stdout
    assert (document["id"], document["repaired"]) == (env_id, False)
    assert [one["kind"] for one in document["faults"]] == ["missing"]


def test_a_manifest_that_was_cut_is_found(either: Envctl, tiny: Tiny, tmp_path: Path) -> None:
    either("gc", "--max-age", "0s")
    env_id = built(either, tiny.model(tmp_path / "model", "tiny-a==1.0"))
    time.sleep(0.05)
    either("list")
    # In place: no directory changes, and the list cannot know.
    os.truncate(either.root / "environments" / env_id / "ready.json", 500)

    found = either("verify")
    (listed,) = documents(either, "list")
    (verdict,) = documents(either, "gc")["environments"]

    assert found.returncode == 1
    assert "its manifest is damaged" in found.stdout
    assert (listed["id"], listed["state"]) == (env_id, "absent")
    assert (verdict["id"], verdict["verdict"]) == (env_id, "remove")
    assert ids(either) == []


def test_many_faults_are_all_told(either: Envctl, tiny: Tiny, tmp_path: Path) -> None:
    either("gc", "--max-age", "0s")
    env_id = built(either, tiny.model(tmp_path / "model", "tiny-a==1.0"))
    # More than a megabyte of them.
    home = prefix(either, env_id)
    for number in range(6000):
        (home / f"{number:0200}").touch()

    (document,) = json.loads(either("verify", env_id, "--json").stdout)
    either("rm", env_id)

    assert len(document["faults"]) == 6000


# run


def test_a_command_runs_inside_the_environment(either: Envctl, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny.model(tmp_path / "model", "tiny-a==1.0")
    script = (
        "import os, sys, tiny_a, json; print(json.dumps([tiny_a.VERSION, sys.prefix, os.getcwd(),"
        " os.environ['VIRTUAL_ENV'], sys.argv[1:], 'PYTHONPATH' in os.environ,"
        " [os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')[:-1]]]))"
    )
    odd = Envctl(either.root, either.env | {"PYTHONPATH": str(tmp_path)})

    status, output, talk = ran(odd, model, "python", "-c", script, "-m", "--json", cwd=tmp_path)

    assert status == 0, talk
    version, there, cwd, virtual_env, arguments, has_path, files = json.loads(output)
    assert version == "1.0"
    assert there == virtual_env == str(prefix(either, built(either, model)))
    assert cwd == str(tmp_path)
    assert arguments == ["-m", "--json"]
    assert not has_path
    assert not [one for one in files if "/held/" in one]
    assert either("verify", built(either, model)).returncode == 0


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (("python", "-c", "raise SystemExit(7)"), 7),
        (("python", "-c", "import os; os.kill(os.getpid(), 9)"), 128 + 9),
        (("no-such-command",), 127),
        (("/dev/null",), 126),
    ],
)
def test_the_status_is_that_of_the_command(
    alone: Envctl, tiny: Tiny, tmp_path: Path, argv: tuple[str, ...], status: int
) -> None:
    model = tiny.model(tmp_path / "model", "tiny-a==1.0")

    found, output, talk = ran(alone, model, *argv)

    assert (found, output) == (status, ""), talk
    assert "Traceback" not in talk
    if status in {126, 127}:
        assert f"cannot run `{argv[0]}`" in talk


def test_a_model_that_cannot_be_built_runs_nothing(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", "no-such-package==9")

    status, output, talk = ran(either, model, "python", "-c", "print('ran')")

    assert (status, output) == (1, "")
    assert "no-such-package" in talk


SAYS_SIGNAL = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGHUP, lambda *_: sys.exit(5))\n"
    "print('here', flush=True)\n"
    "time.sleep(60)\n"
)


@pytest.mark.parametrize(
    ("number", "to_all", "status"),
    [
        (signal.SIGTERM, False, 128 + 15),
        (signal.SIGHUP, False, 5),
        (signal.SIGINT, True, 128 + 2),
    ],
)
def test_signals_reach_the_command(
    alone: Envctl,
    tiny: Tiny,
    tmp_path: Path,
    number: signal.Signals,
    to_all: bool,  # noqa: FBT001
    status: int,
) -> None:
    model = tiny.model(tmp_path / "model", "tiny-a==1.0")

    with background(alone, "run", "-m", model, "--", "python", "-c", SAYS_SIGNAL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        (os.killpg if to_all else os.kill)(process.pid, number)
        _, talk = process.communicate(timeout=20)

    assert process.returncode == status, talk


def test_a_command_holds_the_environment_until_it_ends(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", "tiny-a==1.0")
    env_id = built(either, model)

    with background(either, "run", "-m", model, "--", "python", "-c", SAYS_SIGNAL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        leases = {one["id"]: one["leases"] for one in documents(either, "list")}[env_id]
        held = ids(either, "--filter", "leased=yes")
        refused = either("rm", env_id)
        spared = documents(either, "gc", "--max-age", "0s")
        still_there = ids(either)
        used = either("show", env_id[:8]).stdout
        with background(either, "rm", env_id, "--force") as remover:
            wait_for(lambda: "ready" not in states(either, env_id))
            going = states(either, env_id)
            shown = either("show", env_id[:8]).stdout
            verdicts = {
                one["id"]: one for one in documents(either, "gc", "--dry-run")["environments"]
            }
            assert is_running(process.pid)
            process.send_signal(signal.SIGHUP)
            process.wait(timeout=20)
            output, talk = remover.communicate(timeout=20)

    assert leases == [{"pid": process.pid, "kind": "process"}]
    assert env_id in held
    assert f"held by    pid {process.pid}\n" in used
    assert refused.returncode == 1
    assert str(process.pid) in refused.stderr
    reasons = {one["id"]: one["reason"] for one in spared["environments"]}
    assert str(process.pid) in reasons[env_id]
    assert env_id in still_there
    assert going == ["deleting"]
    assert "state      deleting" in shown
    assert verdicts[env_id]["reason"] in {"being removed", f"in use by pid {process.pid}"}
    assert remover.returncode == 0, talk
    assert output.startswith(f"{env_id} removed")
    assert env_id not in ids(either)


def states(envctl: Envctl, env_id: str) -> list[str]:
    return [one["state"] for one in documents(envctl, "list", "--all") if one["id"] == env_id]


def test_a_command_dies_with_whoever_holds_the_environment_for_it(
    called: Called, tiny: Tiny, tmp_path: Path
) -> None:
    model = tiny.model(tmp_path / "model", "tiny-a==1.0")
    script = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"

    with background(called, "run", "-m", model, "--", "python", "-c", script) as process:
        assert process.stdout is not None
        command = int(process.stdout.readline())
        process.kill()
        process.wait()
        wait_for(lambda: not is_running(command))

    assert documents(called, "list")[0]["leases"] == []


# cancel and logs


def test_a_build_is_cancelled_and_nothing_of_it_is_left(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = slow_model(tiny, tmp_path)

    with background(either, "build", "-m", model, "--json") as build:
        key = under_way(either)
        shown = either("show", key[:12])
        done = either("cancel", key[:12])
        output, talk = build.communicate(timeout=60)
    listed = documents(either, "list", "--all")
    (tmp_path / "gate").touch()
    again = either("build", "-m", model, "--json")

    assert "building for " in shown.stdout
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{key} cancelled\n"
    # Alone, the process that builds is the one that is ended.
    assert build.returncode == (1 if output else 128 + 15), talk
    assert output or talk.endswith("envctl: ended by SIGTERM\n")
    assert not output or json.loads(output)["failure"]["reason"] == "BUILD_CANCELLED"
    assert key not in {one["spec_key"] for one in listed}
    assert json.loads(again.stdout)["state"] == "ready", again.stderr


def test_a_log_is_followed_to_the_end_of_the_build(
    either: Envctl, tiny: Tiny, tmp_path: Path
) -> None:
    model = slow_model(tiny, tmp_path)

    with background(either, "build", "-m", model) as build:
        key = under_way(either)
        so_far = either("logs", key[:12])
        with background(either, "logs", "-f", key[:12]) as follower:
            assert follower.stdout is not None
            first = follower.stdout.readline()
            assert build.poll() is None
            (tmp_path / "gate").touch()
            # What has been read ahead is not for `communicate`.
            rest = follower.stdout.read()
            assert follower.wait(timeout=60) == 0
        build.communicate(timeout=60)
    whole = either("logs", key[:12])
    array = documents(either, "logs", key[:12])
    over = either("logs", "-f", key[:12])

    assert first.startswith(("note: ", "== "))
    assert "== publishing: " in rest
    assert "== publishing: " not in so_far.stdout
    assert whole.stdout == over.stdout == first + rest
    assert array == whole.stdout.splitlines()
