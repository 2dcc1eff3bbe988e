"""The main job with conda: models get their environments from a mirror of conda-forge."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import yaml
from envd_client.errors import RequestInvalidError

from tests import house
from tests.conda_channel import PURE, Channel, Package
from tests.conda_forge import SKLEARN, TOOLS, CondaForge
from tests.conftest import Daemon, Envctl, environment, expected, one_python, wait_for
from tests.index import Index
from tests.mirror import Mirror, hang, want
from tests.tiny import Tiny, wheel

HERE = "{}.{}.{}".format(*sys.version_info)
WORD = Package(
    "word",
    "1.0",
    build=PURE,
    depends=["python"],
    files={"site-packages/word.py": "VERSION = '1.0'\n"},
    noarch="python",
)
LOADER = """
class Model:
    def predict(self, data):
{body}


def _load_pyfunc(path):
    return Model()
"""
BODY = "        import os, word; return [word.VERSION, os.environ.get('MODE'), data]"


@pytest.fixture
def variables(mirror: Mirror, tiny: Tiny, tools: Path) -> dict[str, str]:
    """What makes the mirror conda-forge, and conda the manager."""
    return {
        "ENVD_CONDA__MIRRORS": f"conda-forge={mirror.url}/conda-forge",
        "ENVD_RESOLVE__ENV_MANAGER": "conda",
        **tiny.settings,
        **one_python(tools),
    }


@pytest.fixture
def envctl(
    conda_forge: CondaForge,
    channel: Channel,
    variables: dict[str, str],
    tmp_path: Path,
    home: Path,
) -> Envctl:
    """The command, where conda-forge has this Python and a word."""
    channel.add(*conda_forge.archives(HERE), WORD)
    root = tmp_path / "root"
    return Envctl(root, environment(root, home, **variables))


def model(path: Path, conda_yaml: str, body: str = BODY) -> Path:
    """Write a model whose `conda.yaml` that is."""
    (path / "code").mkdir(parents=True)
    (path / "code" / "tiny_loader.py").write_text(LOADER.format(body=body))
    (path / "conda.yaml").write_text(conda_yaml)
    (path / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: tiny_loader\n    code: code\n"
        "    env:\n      conda: conda.yaml\n"
    )
    return path


def holding(root: Path, text: bytes) -> list[Path]:
    """Return the files below *root* that have *text* in them."""
    files = [one for one in root.rglob("*") if one.is_file() and not one.is_symlink()]
    return [one for one in files if text in one.read_bytes()]


@pytest.mark.parametrize(
    "letter",
    [pytest.param("a", marks=pytest.mark.slow), pytest.param("b", marks=pytest.mark.slow), "b3"],
)
def test_a_real_model_answers_from_a_conda_environment(
    letter: str,
    conda_forge: CondaForge,
    channel: Channel,
    mirror: Mirror,
    tools: Path,
    home: Path,
    tmp_path: Path,
) -> None:
    channel.add(*conda_forge.archives("3.7.16", "3.9.18", *TOOLS, *SKLEARN))
    mirrors = {"ENVD_CONDA__MIRRORS": f"conda-forge={mirror.url}/conda-forge"}
    root, asked = tmp_path / "root", expected(letter)
    envctl = Envctl(root, environment(root, home, **mirrors, **one_python(tools)))

    done = envctl(
        "predict", "-m", asked.path, "--env-manager", "conda", "--json",
        stdin=json.dumps(asked.payload),
    )  # fmt: skip

    document = json.loads(done.stdout or "{}")
    assert document.get("answer") == asked.answer, done.stderr
    rewritten = [one for one in document["notes"] if one["code"] == "CHANNEL_REWRITTEN"]
    assert bool(rewritten) is letter.startswith("b")
    (listed,) = json.loads(envctl("list", "--json").stdout)
    assert listed["manager"] == "conda"
    assert listed["python"]["actual"] == ("3.9.18" if letter == "a" else "3.7.16")


def test_a_model_with_defaults_and_its_twin_share_one_environment(
    envctl: Envctl, tmp_path: Path
) -> None:
    rest = f"dependencies: [python={HERE}, word]\n"
    twins = [
        model(tmp_path / str(number), f"channels: [{channels}]\n{rest}")
        for number, channels in enumerate(("defaults", "conda-forge", "main, conda-forge", ""))
    ]

    done = envctl("build", *twins, "--json")

    built = json.loads(done.stdout or "[]")
    assert len(built) == len(twins), done.stderr
    assert len({one["spec_key"] for one in built}) == 1
    assert len({one["id"] for one in built}) == 1
    assert [one["cached"] for one in built] == [False, True, True, True]
    log = envctl("logs", built[0]["id"]).stdout
    assert log.startswith("note: packages come from conda-forge in the place of `defaults`\n")


def test_pip_packages_go_on_top_of_condas_and_variables_are_set(
    envctl: Envctl, tmp_path: Path
) -> None:
    path = model(
        tmp_path / "model",
        f"dependencies: [python={HERE}, word=1, {{pip: [tiny-a==1.0]}}]\n"
        "variables: {MODE: quick-s3cret}\n",
        BODY.replace("word.VERSION", "word.VERSION + __import__('tiny_a').VERSION"),
    )

    done = envctl("predict", "-m", path, stdin='{"inputs": [1]}')
    said = [
        envctl(*verb)
        for verb in (
            ("build", path, "--json"), ("explain", path), ("list", "--all", "--json"),
        )
    ]  # fmt: skip
    env_id = json.loads(said[0].stdout)["id"]
    said += [envctl("show", env_id, "--json"), envctl("logs", env_id)]
    shown = envctl(
        "run", "-m", path, "--", "/bin/sh", "-c", 'echo "$MODE $CONDA_PREFIX"; command -v python'
    )

    assert json.loads(done.stdout or "null") == {"predictions": ["1.01.0", "quick-s3cret", [1]]}, (
        done.stderr
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    mode, python = shown.stdout.splitlines()
    assert mode.startswith("quick-s3cret /")
    prefix = Path(mode.removeprefix("quick-s3cret "))
    assert python == f"{prefix}/bin/python"
    assert all(one.returncode == 0 for one in said)
    assert "s3cret" not in "".join(one.stdout + one.stderr for one in said)
    (manifest,) = holding(envctl.root, b"s3cret")
    assert manifest.name == "ready.json"
    assert stat.S_IMODE(manifest.stat().st_mode) == 0o600
    site = prefix / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
    assert {one.name for one in site.glob("tiny_*.dist-info")} == {"tiny_a-1.0.dist-info"}


def test_what_conda_brings_is_installed_as_pip_sees_it_and_stays(
    envctl: Envctl, channel: Channel, tmp_path: Path
) -> None:
    info = {"site-packages/word-1.0.dist-info/METADATA": "Name: word\nVersion: 1.0\n"}
    channel.add(replace(WORD, files={**WORD.files, **info}))
    # No index has `word` at all.
    house.wheel(tmp_path, "needs-word", "1.0", requires="word")
    house.wheel(tmp_path, "needs-two", "1.0", requires="word>=2")
    models = [
        model(tmp_path / name, f"dependencies: [python={HERE}, word, {{pip: [{name}]}}]\n")
        for name in ("needs-word", "needs-two")
    ]

    done = envctl("build", *models, "--json", ENVD_INDEX__FIND_LINKS=str(tmp_path))

    built, failed = json.loads(done.stdout or "[{}, {}]")
    assert built.get("state") == "ready", done.stdout
    site = envctl.root.glob(f"environments/{built['id']}/*/lib/python*/site-packages/*.dist-info")
    assert {one.name for one in site} == {"word-1.0.dist-info", "needs_word-1.0.dist-info"}
    assert failed["failure"]["reason"] == "SOLVE_FAILED"
    assert "`needs-two` do not go with what conda installs" in failed["failure"]["message"]
    assert "conda's `word 1.0`" in failed["failure"]["message"]


def test_auto_is_conda_only_where_pypi_lacks_a_package(
    envctl: Envctl, channel: Channel, tmp_path: Path
) -> None:
    channel.add(Package("libword", files={"share/word": "1"}))
    python = f"python={HERE}"
    plain = model(tmp_path / "plain", f"dependencies: [{python}, pip: [tiny-a]]\n")
    system = model(tmp_path / "system", f"dependencies: [{python}, libword]\n")

    built = json.loads(envctl("build", plain, system, "--env-manager", "auto", "--json").stdout)

    assert [one["manager"] for one in built] == ["virtualenv", "conda"]


def test_what_was_changed_is_found_and_built_anew_once_there_is_another(
    envctl: Envctl, mirror: Mirror, tmp_path: Path
) -> None:
    path = model(
        tmp_path / "model", f"dependencies: [python={HERE}, word]\nvariables: {{MODE: quick}}\n"
    )
    env_id = json.loads(envctl("build", "-m", path, "--json").stdout)["id"]
    (file,) = envctl.root.glob("environments/*/*/lib/python*/site-packages/word.py")

    whole = envctl("verify", env_id)
    # Through the hardlink: the package in the cache is another now as well.
    file.write_text("VERSION = '6.6'\n")
    found = envctl("verify", env_id)
    mirror.faults["*.conda"] = want("s3cret")
    in_vain = envctl("verify", env_id, "--repair")
    (left,) = envctl.root.glob("cache/conda/pkgs/word-*/site-packages/word.py")
    is_left = file.samefile(left)
    has_served = envctl("predict", "-m", path, stdin='{"inputs": 1}').returncode == 0
    mirror.faults.clear()
    repaired = envctl("verify", env_id, "--repair")
    done = envctl("predict", "-m", path, stdin='{"inputs": 1}')

    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert found.returncode == 1
    assert "site-packages/word.py" in found.stdout
    assert in_vain.returncode == 1
    assert "answers 401 Unauthorized (are its credentials in `conda.auth_file`" in in_vain.stderr
    assert (is_left, has_served) == (True, True)
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    assert json.loads(done.stdout or "{}").get("predictions") == ["1.0", "quick", 1], (
        done.stderr + repaired.stdout
    )


def test_gc_takes_the_packages_that_no_environment_uses(
    envctl: Envctl, channel: Channel, tmp_path: Path
) -> None:
    channel.add(Package("libword", files={"share/word": "1" * 10_000}))
    kept = model(tmp_path / "kept", f"dependencies: [python={HERE}, word]\n")
    gone = model(tmp_path / "gone", f"dependencies: [python={HERE}, word, libword]\n")
    built = json.loads(envctl("build", kept, gone, "--json").stdout)
    cached = envctl.root / "cache" / "conda" / "pkgs"

    envctl("rm", built[1]["id"])
    done = envctl("gc", "--max-age", "30d", "--json")
    again = envctl("build", gone)

    assert json.loads(done.stdout)["downloads"]["freed_bytes"] >= 10_000, done.stderr
    assert {one.name.split("-")[0] for one in cached.iterdir() if one.is_dir()} == {
        "libword", "python", "word",
    }, again.stderr  # fmt: skip
    assert again.returncode == 0


def test_a_lock_is_a_conda_lock_yml(envctl: Envctl, tmp_path: Path) -> None:
    path = model(tmp_path / "model", f"dependencies: [python={HERE}, word]\n")

    done = envctl("lock", "-m", path, "--json")

    packages = json.loads(done.stdout or "{}").get("package", [])
    names = {(one["manager"], one["name"], one["version"]) for one in packages}
    assert names >= {("conda", "python", HERE), ("conda", "word", "1.0")}, done.stderr
    assert all(one["url"].startswith("https://conda.anaconda.org/conda-forge/")
               for one in packages if one["manager"] == "conda")  # fmt: skip


def test_what_cannot_be_solved_is_explained(
    envctl: Envctl, channel: Channel, tmp_path: Path
) -> None:
    channel.add(replace(WORD, version="7.0", published=date(2024, 3, 1)))
    path = model(
        tmp_path / "model", f"dependencies: [python={HERE}, word=7]\nvariables: {{KEY: s3cret}}\n"
    )
    with (path / "MLmodel").open("a") as file:
        file.write("utc_time_created: '2024-02-14 12:00:00'\n")

    done = json.loads(envctl("build", "-m", path, "--json").stdout)
    listed = json.loads(envctl("list", "--all", "--json").stdout)

    assert done["failure"]["reason"] == "SOLVE_FAILED"
    assert done["failure"]["message"] == (
        "no set of conda packages as of 2024-02-01 satisfies what is asked for on linux-64: word "
        '7.0 was published later (`resolve.as_of = "now"`, ENVD_RESOLVE__AS_OF=now, takes today\'s '
        "packages)"
    )
    assert [one["state"] for one in listed] == ["failed"]
    assert holding(envctl.root, b"s3cret") == []


def test_a_conda_lock_yml_in_the_model_is_honoured(
    envctl: Envctl, channel: Channel, tmp_path: Path
) -> None:
    path = model(tmp_path / "model", f"dependencies: [python={HERE}, word]\n")
    locked = envctl("lock", "-m", path, "-o", path / "conda-lock.yml")
    channel.add(replace(WORD, version="2.0"))

    honoured = json.loads(envctl("build", "-m", path, "--json").stdout or "{}")
    anew = json.loads(envctl("explain", "-m", path, "--json").stdout or "{}")
    (path / "conda-lock.yml").unlink()
    without = json.loads(envctl("build", "-m", path, "--json", ENVD_ROOT=f"{envctl.root}2").stdout)

    assert locked.returncode == 0, locked.stderr
    assert honoured["state"] == "ready", honoured
    assert "LOCK_HONOURED" in {one["code"] for one in honoured["notes"]}
    assert anew["env_id"] == honoured["id"] != without["id"]
    assert "word ==1.0" in json.dumps(anew["spec"]["packages"])


def test_a_lock_may_be_for_other_platforms_as_well(
    envctl: Envctl,
    channel: Channel,
    start_index: Callable[..., Index],
    tiny: Tiny,
    tmp_path: Path,
) -> None:
    channel.clone("osx-arm64")
    index = start_index()
    index.add(tiny.wheels / "tiny_a-1.0-py3-none-any.whl")
    found = {
        "ENVD_INDEX__URLS": index.url,
        "ENVD_INDEX__NO_INDEX": "false",
        "ENVD_INDEX__FIND_LINKS": "",
    }
    path = model(
        tmp_path / "model", f"dependencies: [python={HERE}, word, {{pip: [tiny-a==1.0]}}]\n"
    )

    done = envctl("lock", "-m", path, "--platform", "osx-arm64", "--json", **found)
    wrong = envctl("lock", "-m", path, "--platform", "amiga", **found)

    packages = json.loads(done.stdout or "{}").get("package", [])
    locked = sorted((one["platform"], one["manager"], one["name"]) for one in packages)
    assert locked == [
        (platform, *one)
        for platform in ("linux-64", "osx-arm64")
        for one in (("conda", "python"), ("conda", "word"), ("pip", "tiny-a"))
    ], done.stderr
    assert all(len(one["hash"]["sha256"]) == 64 for one in packages)
    assert wrong.returncode == 2
    assert "`amiga` is no platform" in wrong.stderr


def test_of_a_platform_that_uv_does_not_know_only_conda_packages_are_locked(
    envctl: Envctl, channel: Channel, tmp_path: Path
) -> None:
    channel.clone("linux-ppc64le")
    plain = model(tmp_path / "plain", f"dependencies: [python={HERE}, word]\n")
    mixed = model(tmp_path / "mixed", f"dependencies: [python={HERE}, {{pip: [tiny-a]}}]\n")

    done = envctl("lock", "-m", plain, "--platform", "linux-ppc64le")
    refused = envctl("lock", "-m", mixed, "--platform", "linux-ppc64le")

    assert "linux-ppc64le" in {one[0] for one in _packages(done.stdout)}, done.stderr
    assert refused.returncode == 2
    assert "cannot be locked for linux-ppc64le, which uv does not know" in refused.stderr


def test_of_a_lock_in_the_model_another_platform_has_what_that_says(
    envctl: Envctl, channel: Channel, mirror: Mirror, tmp_path: Path
) -> None:
    channel.clone("osx-arm64")
    path = model(tmp_path / "model", f"dependencies: [python={HERE}, word]\n")
    envctl("lock", "-m", path, "--platform", "osx-arm64", "-o", path / "conda-lock.yml")
    lock = (path / "conda-lock.yml").read_text()
    # A newer one would be taken if anybody asked.
    channel.add(replace(WORD, version="1.1"))
    mirror.requests.clear()

    again = envctl("lock", "-m", path, "--platform", "osx-arm64")
    none = envctl("lock", "-m", path, "--platform", "linux-aarch64")
    override = ("--pip-requirements-override", "tiny-a==1.0")
    overridden = envctl("lock", "-m", path, "--platform", "osx-arm64", *override)

    assert _packages(again.stdout) == _packages(lock), again.stderr
    assert mirror.asked("*/repodata*") == 0
    assert none.returncode == 1
    assert "no packages for linux-aarch64, only for linux-64, osx-arm64" in none.stderr
    assert overridden.returncode == 2
    assert "lock it without overrides" in overridden.stderr


def _packages(lock: str) -> list[tuple[str, ...]]:
    keys = ("platform", "manager", "name", "version", "url")
    return sorted(tuple(one[key] for key in keys) for one in yaml.safe_load(lock)["package"])


def test_many_commands_at_once_make_one_build_and_all_answer(
    envctl: Envctl, mirror: Mirror, tmp_path: Path
) -> None:
    path = model(tmp_path / "model", f"dependencies: [python={HERE}, word]\n")

    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(lambda _: envctl("build", "-m", path, "--json"), range(4)))

    built = [json.loads(one.stdout or "{}") for one in done]
    assert [one.get("state") for one in built] == ["ready"] * 4, done[0].stderr
    assert len({one["id"] for one in built}) == 1
    assert [one["cached"] for one in built].count(False) == 1
    assert mirror.asked("*/word-*") == 1


def test_a_killed_build_leaves_nothing_half_made(
    envctl: Envctl, mirror: Mirror, tmp_path: Path
) -> None:
    path = model(tmp_path / "model", f"dependencies: [python={HERE}, word]\n")
    mirror.faults["*/word-*"] = hang
    builder = subprocess.Popen(
        envctl.argv("build", "-m", path),
        env=envctl.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: mirror.asked("*/word-*") > 0)

    os.kill(builder.pid, signal.SIGKILL)
    builder.wait()
    mirror.faults.clear()
    done = envctl("predict", "-m", path, stdin='{"inputs": 1}')

    assert json.loads(done.stdout or "{}").get("predictions") == ["1.0", None, 1], done.stderr
    (home,) = envctl.root.glob("environments/*")
    assert len([one for one in home.iterdir() if (one / "bin").exists()]) == 1
    assert not list((envctl.root / "scratch").iterdir())


def test_a_caller_of_the_daemon_chooses_the_manager(
    start_daemon: Callable[..., Daemon],
    conda_forge: CondaForge,
    channel: Channel,
    variables: dict[str, str],
    tmp_path: Path,
) -> None:
    channel.add(*conda_forge.archives(HERE), WORD)
    path = model(tmp_path / "model", f"dependencies: [python={HERE}, word]\n")
    daemon = start_daemon(tmp_path / "root", **variables | {"ENVD_RESOLVE__ENV_MANAGER": "auto"})

    with daemon.client() as client:
        answer = client.predict(path, {"inputs": 1}, env_manager="conda")
        found = client.get(answer.environment_id, full=True)
        resolved = client.resolve(path, env_manager="conda", lock=True)
        with pytest.raises(RequestInvalidError, match="`docker` makes no environments"):
            client.predict(path, {"inputs": 1}, env_manager="docker")

    assert json.loads(answer.payload)["predictions"] == ["1.0", None, 1]
    assert found.manager == "conda"
    assert {one.name for one in found.packages} == {"python", "word"}
    assert resolved.environment_id == answer.environment_id
    assert resolved.lock_file == "conda-lock.yml"
    assert "CHANNEL_REWRITTEN" in {one.code for one in answer.notes}


def test_without_the_extra_it_is_said_which_command_adds_it(envctl: Envctl, tmp_path: Path) -> None:
    path = model(tmp_path / "model", f"dependencies: [python={HERE}, word]\n")
    # As Python says that a module cannot be imported.
    program = "import sys; sys.modules['rattler'] = None; from envd.cli.main import main; main()"

    done = subprocess.run(
        [sys.executable, "-c", program, "build", "-m", path],
        env=envctl.env,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "pip install 'envd-daemon[conda]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_private_channel_is_reached_with_the_token_of_the_settings_which_is_kept_nowhere(
    envctl: Envctl, mirror: Mirror, variables: dict[str, str], tmp_path: Path
) -> None:
    team = Channel(mirror.folder / "team")
    team.add(replace(WORD, version="3.0"))
    mirror.faults["/team/*"] = want("s3cret")
    path = model(
        tmp_path / "model",
        f"channels: ['{mirror.url}/t/wr0ng/team', conda-forge]\n"
        f"dependencies: [python={HERE}, word=3]\n",
    )
    mirrors = f"{variables['ENVD_CONDA__MIRRORS']},{mirror.url}/team={mirror.url}/t/s3cret/team"

    without = envctl("build", "-m", path)
    done = envctl(
        "predict", "-m", path, "--json", stdin='{"inputs": 1}', ENVD_CONDA__MIRRORS=mirrors
    )

    assert "are its credentials in `conda.auth_file` or `conda.mirrors`?" in without.stderr
    document = json.loads(done.stdout or "{}")
    assert document.get("answer", {}).get("predictions"), done.stderr
    assert "CREDENTIALS_CUT" in {one["code"] for one in document["notes"]}
    said = without.stdout + without.stderr + done.stdout + done.stderr
    kept = [one for one in envctl.root.rglob("*") if one.is_file() and not one.is_symlink()]
    assert not re.search("s3cret|wr0ng", said)
    assert not [one for one in kept if re.search(b"s3cret|wr0ng", one.read_bytes())]
    assert {one.credential for one in mirror.requests if "/team/" in one.path} == {"", "s3cret"}


def test_only_pythons_patch_release_gives_way(
    envctl: Envctl, channel: Channel, tmp_path: Path
) -> None:
    channel.add(replace(WORD, name="mypython", version="1.0.1", files={}))
    minor = HERE.rpartition(".")[0]
    near = model(tmp_path / "near", f"dependencies: [python={minor}.99, word]\n")
    other = model(tmp_path / "other", f"dependencies: [python={HERE}, mypython=1.0.0]\n")

    built, failed = json.loads(envctl("build", near, other, "--json").stdout)

    assert built["python"] == {"requested": f"{minor}.99", "actual": HERE}
    assert "PYTHON_PATCH_DIFFERS" in {one["code"] for one in built["notes"]}
    assert "\nnote: the model asks for Python " in envctl("logs", built["id"]).stdout
    assert failed["failure"]["reason"] == "SOLVE_FAILED"
    assert "mypython" in failed["failure"]["message"]


def test_where_python_has_to_be_exact_a_lock_with_another_is_none(
    envctl: Envctl, tmp_path: Path
) -> None:
    exact = {"ENVD_PYTHON__MATCH": "exact"}
    minor = HERE.rpartition(".")[0]
    near = model(tmp_path / "near", f"dependencies: [python={minor}.99, word]\n")
    same = model(tmp_path / "same", f"dependencies: [python={HERE}, word]\n")
    built = json.loads(envctl("build", near, same, "--json").stdout)

    failed, found = json.loads(envctl("build", near, same, "--json", **exact).stdout)
    explained = json.loads(envctl("explain", "-m", near, "--json", **exact).stdout)
    again = json.loads(envctl("build", "-m", near, "--json").stdout)

    assert [one["state"] for one in built] == ["ready", "ready"]
    assert failed["failure"]["reason"] == "SOLVE_FAILED"
    assert f"no `python {minor}.99.*` (there is {HERE})" in failed["failure"]["message"]
    assert found["cached"]
    assert not explained["env_id"]
    assert (again["cached"], again["id"]) == (True, built[0]["id"])


def test_a_wheel_that_overwrites_condas_records_costs_nothing_but_itself(
    envctl: Envctl, tmp_path: Path
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    name = f"conda-meta/word-1.0-{PURE}.json"
    odd = wheel(wheels, "tiny-odd", "1.0", tiny_odd="X = 1\n")
    with zipfile.ZipFile(odd, "a") as archive:
        archive.writestr(f"tiny_odd-1.0.data/data/{name}", "not json")
    path = model(tmp_path / "model", f"dependencies: [python={HERE}, word, {{pip: [tiny-odd]}}]\n")

    done = envctl("build", "-m", path, ENVD_INDEX__FIND_LINKS=str(wheels))

    assert "Traceback" not in done.stderr, done.stderr
    assert "INTERNAL" not in done.stderr
