"""The store: ready means the manifest, leases keep, and what is half made is rubbish."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from envd import config, model
from envd.build.bytecode import Bytecode
from envd.environments.environments import Environments
from envd.errors import EnvironmentInUseError, EnvironmentNotFoundError, RequestInvalidError
from envd.events import Event, Stage
from envd.store import prefixes, removal
from tests.conftest import lose_interpreter
from tests.tiny import Tiny


@pytest.fixture
def environments(tmp_path: Path, tiny: Tiny) -> Environments:
    return Environments(config.load(root=tmp_path / "root", environ=tiny.settings))


def _build(environments: Environments, path: Path, events: list[Event] | None = None):
    asked = environments.ask(model.read(path))
    return environments.ready(asked, (events if events is not None else []).append)


def test_a_directory_without_a_manifest_is_not_an_environment(
    environments: Environments, tiny: Tiny, tmp_path: Path
) -> None:
    ready = _build(environments, tiny.model(tmp_path / "model"))
    manifest = environments.store.layout.manifest(ready.environment.id)
    manifest.unlink()

    again = _build(environments, tmp_path / "model")

    assert not again.cached
    assert again.environment.prefix != ready.environment.prefix
    assert not ready.environment.prefix.exists()


@pytest.mark.parametrize("damage", ["", "{", '{"format": 1}', '{"format": 99}', "[]"])
def test_a_damaged_manifest_is_no_manifest(
    environments: Environments, tiny: Tiny, tmp_path: Path, damage: str
) -> None:
    ready = _build(environments, tiny.model(tmp_path / "model"))

    environments.store.layout.manifest(ready.environment.id).write_text(damage)

    assert environments.store.find(ready.environment.id) is None
    assert [one.broken for one in environments.store.records()] == [
        "its manifest is damaged, or of another envd"
    ]


def test_an_environment_whose_interpreter_is_gone_is_built_again(
    environments: Environments, tiny: Tiny, tmp_path: Path
) -> None:
    ready = _build(environments, tiny.model(tmp_path / "model"))
    lose_interpreter(environments.store.layout.manifest(ready.environment.id))

    again = _build(environments, tmp_path / "model")

    assert not again.cached
    assert again.environment.id == ready.environment.id


def test_a_failed_build_leaves_nothing(tiny: Tiny, tmp_path: Path) -> None:
    from envd.errors import InstallFailedError
    from tests.tiny import sdist

    wheels = tmp_path / "wheels"
    wheels.mkdir()
    sdist(wheels, "broken", "1.0", "raise SystemExit('it cannot be built')")
    settings = config.load(
        root=tmp_path / "root",
        environ=tiny.settings | {"ENVD_INDEX__FIND_LINKS": f"{tiny.wheels},{wheels}"},
    )

    with pytest.raises(InstallFailedError, match="broken") as raised:
        _build(Environments(settings), tiny.model(tmp_path / "model", "broken"))

    assert "it cannot be built" in Path(raised.value.metadata["log"]).read_text()
    assert not list((tmp_path / "root" / "environments").glob("*"))
    assert not list((tmp_path / "root" / "trash").glob("*"))


def test_the_lease_of_a_killed_process_ends_with_it(
    environments: Environments, tiny: Tiny, tmp_path: Path
) -> None:
    found = _build(environments, tiny.model(tmp_path / "model")).environment
    program = textwrap.dedent(f"""
        import pathlib, time
        from envd.store import Store
        kept = Store(pathlib.Path({str(tmp_path / "root")!r})).lease({found.id!r})
        print("leased" if kept else "refused", flush=True)
        time.sleep(600)
    """)
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "leased\n"

    holders = environments.store.holders().of(found.id)
    with pytest.raises(EnvironmentInUseError, match=str(holder.pid)):
        removal.remove(environments.store, found.id)
    holder.kill()
    holder.communicate()
    removal.remove(environments.store, found.id)

    assert [one.pid for one in holders] == [holder.pid]
    assert environments.store.find(found.id) is None


def test_a_lease_on_what_was_removed_is_refused(
    environments: Environments, tiny: Tiny, tmp_path: Path
) -> None:
    found = _build(environments, tiny.model(tmp_path / "model")).environment
    removal.remove(environments.store, found.id)

    assert environments.store.lease(found.id) is None
    assert environments.store.holders().of(found.id) == ()


def test_ids_are_found_by_their_beginning(
    environments: Environments, tiny: Tiny, tmp_path: Path
) -> None:
    found = _build(environments, tiny.model(tmp_path / "model")).environment
    store = environments.store

    assert prefixes.resolve(store, found.id[:4]).id == found.id
    assert prefixes.resolve(store, found.manifest.spec_key).id == found.id
    assert prefixes.resolve(store, found.manifest.spec_key[:8]).id == found.id
    with pytest.raises(RequestInvalidError, match="too short"):
        prefixes.resolve(store, found.id[:3])
    with pytest.raises(EnvironmentNotFoundError):
        prefixes.resolve(store, "feedfeed")
    with pytest.raises(RequestInvalidError, match="no id"):
        prefixes.resolve(store, "../../etc")


def test_a_cached_lock_needs_no_index(
    environments: Environments, tiny: Tiny, tmp_path: Path
) -> None:
    path = tiny.model(tmp_path / "model")
    found = _build(environments, path).environment
    removal.remove(environments.store, found.id)
    events: list[Event] = []
    offline = config.load(
        root=tmp_path / "root", environ=tiny.settings | {"ENVD_INDEX__OFFLINE": "true"}
    )

    again = _build(Environments(offline), path, events)

    assert again.environment.id == found.id
    assert "locking" not in [one.name for one in events if isinstance(one, Stage)]


def test_bytecode_is_written_once_and_put_into_further_environments(
    environments: Environments, tiny: Tiny, tmp_path: Path
) -> None:
    path = tiny.model(tmp_path / "model")
    first = _build(environments, path).environment
    removal.remove(environments.store, first.id)
    events: list[Event] = []

    second = _build(environments, path, events).environment

    stages = [one.name for one in events if isinstance(one, Stage)]
    assert stages == ["installing", "publishing"]
    compiled = list(second.prefix.glob("lib/python*/site-packages/__pycache__/tiny_a.*.pyc"))
    assert len(compiled) == 1
    shown = subprocess.run(
        [second.python, "-I", "-B", "-v", "-c", "import tiny_a"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{compiled[0]} matches" in shown.stderr


def test_bytecode_of_another_source_is_not_used(
    environments: Environments, tiny: Tiny, tmp_path: Path
) -> None:
    found = _build(environments, tiny.model(tmp_path / "model")).environment
    source = next(found.prefix.glob("lib/python*/site-packages/tiny_a.py"))
    source.unlink()
    source.write_text("VERSION = 'another'\n")
    for one in found.prefix.glob("lib/python*/site-packages/__pycache__/tiny_a.*"):
        one.unlink()
    cache = tmp_path / "root" / "cache" / "bytecode"

    bytecode = Bytecode(cache, found.manifest.python, "hardlink")
    packages = found.manifest.lock.packages

    placed = bytecode.place(packages, found.prefix)
    fresh = bytecode.fresh(packages, placed)

    assert [one.name for one in fresh] == ["tiny-a"]
    assert not list(source.parent.glob("__pycache__/tiny_a.*"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_builder_killed_at_any_moment_leaves_no_environment_half_built(
    tiny: Tiny, tmp_path: Path, seed: int
) -> None:
    path = tiny.model(tmp_path / "model")
    root = tmp_path / "root"
    program = textwrap.dedent(f"""
        import pathlib
        from envd import config, model
        from envd.environments.environments import Environments
        found = Environments(config.load(root=pathlib.Path({str(root)!r})))
        found.ready(found.ask(model.read(pathlib.Path({str(path)!r}))))
    """)
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)} | tiny.settings
    for pause in (0.05 + 0.11 * seed, 0.3 + 0.13 * seed):
        builder = subprocess.Popen([sys.executable, "-c", program], env=env)
        time.sleep(pause)
        builder.send_signal(signal.SIGKILL)
        builder.wait()

        store = Environments(config.load(root=root, environ=tiny.settings)).store
        for found in filter(None, map(store.read, store.ids())):
            ran = subprocess.run([found.python, "-I", "-c", "import tiny_a"], check=False)
            assert ran.returncode == 0, "a half-built environment was published"
    done = subprocess.run([sys.executable, "-c", program], env=env, check=False)

    assert done.returncode == 0
    homes = list((root / "environments").iterdir())
    assert len(homes) == 1
    assert len([one for one in homes[0].iterdir() if one.is_dir()]) == 1
