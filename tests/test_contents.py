"""The record of an environment's files: any change is found, whoever made it."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from envd import config, model
from envd.environments.environments import Environments
from envd.store import Environment, trees
from envd.store.contents import Contents, Fault, faults, record, sharing
from envd.store.sizes import Sizes
from tests.tiny import Tiny, wheel

Undo = Callable[[], object]


@pytest.fixture
def environments(tmp_path: Path, tiny: Tiny) -> Environments:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    # Two that bring the same path.
    wheel(wheels, "tiny-c", "1.0", tiny_c="", common="OF = 'c'\n")
    wheel(wheels, "tiny-d", "1.0", tiny_d="", common="OF = 'd'\n")
    links = {"ENVD_INDEX__FIND_LINKS": f"{tiny.wheels},{wheels}"}
    return Environments(config.load(root=tmp_path / "root", environ=tiny.settings | links))


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    prefix = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
    return prefix


def _build(environments: Environments, tiny: Tiny, *names: str) -> Environment:
    path = environments.settings.root.parent / "models" / "-".join(names)
    found = model.read(tiny.model(path, *names))
    return environments.ready(environments.ask(found)).environment


def _record(found: Environment, root: Path) -> Contents:
    packages = found.manifest.lock.packages
    return record(found.prefix, packages, _target(found), root / "cache" / "digests")


def _target(found: Environment) -> Path:
    return found.prefix.with_suffix(".files")


def _kinds(found: list[Fault]) -> dict[str, str]:
    return {one.path: one.kind for one in found}


def _within(found: Environment, pattern: str) -> Path:
    return next(found.prefix.glob(f"lib/python*/site-packages/{pattern}"))


def _poison(path: Path) -> None:
    """Write into the inode itself, as many bytes as it had."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    with path.open("r+b") as file:
        file.write(content)


def measure(prefix: Path) -> Sizes:
    """Add up the files below *prefix*."""
    found = trees.measure(prefix)
    return Sizes(found.alone + sum(one.st_size for one in found.shared.values()), found.alone)


def test_what_is_unchanged_has_no_fault(bare: Path, tmp_path: Path) -> None:
    (bare / "a\nb\\c \udcff \N{SNOWMAN}").write_text("x")
    (bare / "empty").mkdir()
    os.mkfifo(bare / "pipe")

    contents = record(bare, (), tmp_path / "files", tmp_path / "known")

    assert faults(bare, tmp_path / "files", contents.digest) == []
    assert contents.sizes == measure(bare)
    assert contents.shares == ()


def test_the_same_files_make_the_same_record(
    environments: Environments, tiny: Tiny, tmp_path: Path
) -> None:
    found = _build(environments, tiny, "tiny-a", "tiny-b")

    cold = _record(found, tmp_path / "root")
    warm = _record(found, tmp_path / "root")

    assert warm == cold
    assert cold.sizes == measure(found.prefix)
    assert cold.sizes.exclusive + sum(size for _, size in cold.shares) == cold.sizes.total
    artifacts = {one.sha256 for one in found.manifest.lock.packages}
    assert {sha256 for sha256, _ in cold.shares} == artifacts
    assert {one.name for one in (tmp_path / "root/cache/digests").iterdir()} == artifacts


def test_any_single_change_is_found(environments: Environments, tiny: Tiny, tmp_path: Path) -> None:
    found = _build(environments, tiny, "tiny-a", "tiny-b")
    contents = _record(found, tmp_path / "root")
    chance = random.Random(7)

    for _ in range(100):
        what, undo = _mutate(chance, found.prefix)
        seen = faults(found.prefix, _target(found), contents.digest)
        undo()
        assert len(seen) == 1, (what, seen)

    assert faults(found.prefix, _target(found), contents.digest) == []


def _mutate(chance: random.Random, prefix: Path) -> tuple[str, Undo]:
    entries = sorted(one for one in prefix.rglob("*") if not one.is_symlink())
    file = chance.choice([one for one in entries if one.is_file() and one.stat().st_size])
    folder = chance.choice([prefix, *(one for one in entries if one.is_dir())])
    link = chance.choice([one for one in prefix.rglob("*") if one.is_symlink()])
    kind = chance.choice([_flip, _remove, _add, _mode, _relink, _replace])
    path = {_add: folder, _relink: link, _mode: chance.choice(entries)}.get(kind, file)
    return f"{kind.__name__} {path}", kind(chance, path)


def _flip(chance: random.Random, path: Path) -> Undo:
    content = path.read_bytes()
    changed = bytearray(content)
    changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.write(changed)
    os.utime(path, ns=times)
    return lambda: (path.write_bytes(content), os.utime(path, ns=times))


def _remove(_: random.Random, path: Path) -> Undo:
    aside = path.rename(path.parents[len(path.parents) - 3] / "aside")
    return lambda: aside.rename(path)


def _add(chance: random.Random, folder: Path) -> Undo:
    path = folder / chance.choice(["added.pth", "sitecustomize.py", "__pycache__x", "folder"])
    if path.name == "folder":
        (path / "within").mkdir(parents=True)
        return lambda: shutil.rmtree(path)
    path.write_text("")
    return path.unlink


def _mode(_: random.Random, path: Path) -> Undo:
    mode = path.stat().st_mode
    path.chmod(mode ^ 0o022)
    return lambda: path.chmod(mode)


def _relink(_: random.Random, path: Path) -> Undo:
    target = path.readlink()
    path.unlink()
    path.symlink_to("/bin/true")
    return lambda: (path.unlink(), path.symlink_to(target))


def _replace(chance: random.Random, path: Path) -> Undo:
    aside = path.rename(path.parents[len(path.parents) - 3] / "aside")
    if chance.random() < 0.5:
        path.symlink_to(aside)
        return lambda: (path.unlink(), aside.rename(path))
    (path / "within").mkdir(parents=True)
    return lambda: (shutil.rmtree(path), aside.rename(path))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda at: (at / "pyvenv.cfg").write_text("home = /\n"), {"pyvenv.cfg": "changed"}),
        (lambda at: (at / "bin/activate").open("a").close(), {}),
        (lambda at: (at / "bin/activate").chmod(0o777), {"bin/activate": "changed"}),
        (lambda at: (at / "bin").chmod(0o700), {"bin": "changed"}),
        (lambda at: (at / "new").mkdir(), {"new": "added"}),
        (lambda at: shutil.rmtree(at / "bin"), {"bin": "missing"}),
        (shutil.rmtree, {".": "missing"}),
        (lambda at: (at / "back\\slash\n").touch(), {"back\\\\slash\\n": "added"}),
        (lambda at: _other(at / "pyvenv.cfg"), {"pyvenv.cfg": "changed"}),
    ],
)
def test_a_fault_says_what_is_changed(
    bare: Path, tmp_path: Path, change: Callable[[Path], object], expected: dict[str, str]
) -> None:
    contents = record(bare, (), tmp_path / "files", tmp_path / "known")

    change(bare)

    assert _kinds(faults(bare, tmp_path / "files", contents.digest)) == expected


def _other(path: Path) -> None:
    """Put a pipe there, which nobody may read from."""
    path.unlink()
    os.mkfifo(path)


def test_a_changed_file_has_its_identity_and_its_differences(bare: Path, tmp_path: Path) -> None:
    contents = record(bare, (), tmp_path / "files", tmp_path / "known")
    path = bare / "bin" / "activate"
    path.chmod(0o600)
    _poison(path)
    (tmp_path / "other name").hardlink_to(path)
    (bare / "pyvenv.cfg").write_text("")

    first, second = faults(bare, tmp_path / "files", contents.digest)

    assert first.detail == "its content is another; its mode is 600, and was 644"
    assert first.identity == (path.stat().st_dev, path.stat().st_ino)
    assert second.detail.startswith("it has 0 bytes, and had ")
    # Nobody else has it.
    assert second.identity is None


def test_a_record_cut_anywhere_is_a_fault_of_its_own(bare: Path, tmp_path: Path) -> None:
    target = tmp_path / "files"
    contents = record(bare, (), target, tmp_path / "known")
    text = target.read_bytes()

    for end in range(len(text)):
        target.write_bytes(text[:end])
        assert _kinds(faults(bare, target, contents.digest)) == {"files": "changed"}
    for damage in (b"", b"\xff\n", text + b"\n"):
        target.write_bytes(damage)
        assert _kinds(faults(bare, target, contents.digest)) == {"files": "changed"}
    target.unlink()
    assert _kinds(faults(bare, target, contents.digest)) == {"files": "missing"}
    target.mkdir()
    assert _kinds(faults(bare, target, contents.digest)) == {"files": "changed"}


def _open_to_all(path: Path) -> None:
    path.chmod(0o666)


@pytest.mark.parametrize(
    "harms",
    [
        {"tiny_a.py": _poison},
        {"tiny_a.py": _open_to_all, "__pycache__/tiny_a.*.pyc": _poison},
    ],
)
def test_what_was_poisoned_through_one_environment_is_found_in_all(
    environments: Environments,
    tiny: Tiny,
    tmp_path: Path,
    harms: dict[str, Callable[[Path], None]],
) -> None:
    root = tmp_path / "root"
    first = _build(environments, tiny, "tiny-a")
    second = _build(environments, tiny, "tiny-a", "tiny-b")
    of_first, of_second = _record(first, root), _record(second, root)
    changed = {_within(first, pattern): harm for pattern, harm in harms.items()}
    harmed = sorted(str(path.relative_to(first.prefix)) for path in changed)

    for path, harm in changed.items():
        harm(path)
    later = _build(environments, tiny, "tiny-a", "tiny-c")
    of_later = _record(later, root)

    found = faults(first.prefix, _target(first), of_first.digest)
    assert _kinds(found) == dict.fromkeys(harmed, "changed")
    assert _kinds(faults(second.prefix, _target(second), of_second.digest)) == _kinds(found)
    assert _kinds(faults(later.prefix, _target(later), of_later.digest)) == _kinds(found)
    others = {one.id: one.prefix for one in (second, later)}
    assert sharing(others, found) == {second.id: harmed, later.id: harmed}


def test_what_a_build_has_compiled_itself_is_right(
    environments: Environments, tiny: Tiny, tmp_path: Path
) -> None:
    found = _build(environments, tiny, "tiny-a")
    _record(found, tmp_path / "root")

    # As if it had the inode of what was kept, and has been removed.
    _poison(_within(found, "__pycache__/tiny_a.*.pyc"))
    contents = _record(found, tmp_path / "root")

    assert faults(found.prefix, _target(found), contents.digest) == []


def test_what_nobody_shares_is_nobodys(
    environments: Environments, tiny: Tiny, bare: Path, tmp_path: Path
) -> None:
    first = _build(environments, tiny, "tiny-a")
    second = _build(environments, tiny, "tiny-a", "tiny-b")
    contents = _record(first, tmp_path / "root")
    path = _within(first, "tiny_a.py")
    text = path.read_text()
    path.unlink()
    path.write_text(f"{text}\n")

    found = faults(first.prefix, _target(first), contents.digest)

    assert len(found) == 1
    assert sharing({"second": second.prefix, "bare": bare, "no": tmp_path / "no"}, found) == {}


def test_a_changed_file_is_found_anywhere_in_others(bare: Path, tmp_path: Path) -> None:
    data = bare / "share" / "data"
    data.parent.mkdir()
    data.write_text("data")
    contents = record(bare, (), tmp_path / "files", tmp_path / "known")
    holds, holds_not = tmp_path / "holds", tmp_path / "holds not"
    for prefix in (holds, holds_not):
        (prefix / "etc").mkdir(parents=True)
        (prefix / "share").mkdir()
        (prefix / "share" / "data").write_text("poison\n")
    (holds / "etc" / "elsewhere\n").hardlink_to(data)
    (holds / "again").hardlink_to(data)

    _poison(data)
    found = faults(bare, tmp_path / "files", contents.digest)

    assert _kinds(found) == {"share/data": "changed"}
    others = {"holds": holds, "not": holds_not, "gone": tmp_path / "gone"}
    assert sharing(others, found) == {"holds": ["again", "etc/elsewhere\\n"]}


def test_what_is_known_is_made_again_when_it_is_damaged(
    environments: Environments, tiny: Tiny, tmp_path: Path
) -> None:
    found = _build(environments, tiny, "tiny-a")
    first = _record(found, tmp_path / "root")
    folder = tmp_path / "root" / "cache" / "digests"
    known = min(folder.iterdir())
    kept = known.read_text()

    for damage in ("", "x", "0\n1 a\tb", "\0", kept[:-1], kept.replace("4", "5", 1)):
        known.write_text(damage)
        assert _record(found, tmp_path / "root") == first
        assert sorted(known.read_text().splitlines()[1:]) == sorted(kept.splitlines()[1:])

    shutil.rmtree(folder)
    assert _record(found, tmp_path / "root") == first
    # Where it cannot be kept, everything is read each time.
    shutil.rmtree(folder)
    folder.write_text("")
    assert _record(found, tmp_path / "root") == first


def test_a_path_that_two_artifacts_bring_is_the_one_that_is_there(
    environments: Environments, tiny: Tiny, tmp_path: Path
) -> None:
    built = [
        _build(environments, tiny, "tiny-a", *names)
        for names in (["tiny-c"], ["tiny-c", "tiny-d"], ["tiny-d"])
    ]

    for one in [*built, *built]:
        contents = _record(one, tmp_path / "root")
        assert faults(one.prefix, _target(one), contents.digest) == []


def test_copies_have_nothing_in_common(tiny: Tiny, tmp_path: Path) -> None:
    settings = config.load(
        root=tmp_path / "root", environ=tiny.settings | {"ENVD_BUILD__LINK_MODE": "copy"}
    )
    found = _build(Environments(settings), tiny, "tiny-a")

    contents = _record(found, tmp_path / "root")

    assert contents.shares == ()
    assert contents.sizes.exclusive == contents.sizes.total
    assert faults(found.prefix, _target(found), contents.digest) == []


def test_a_record_that_cannot_be_written_is_an_error(bare: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        record(bare, (), tmp_path / "no" / "files", tmp_path / "known")
    with pytest.raises(OSError, match="No such file"):
        record(tmp_path / "no", (), tmp_path / "files", tmp_path / "known")
