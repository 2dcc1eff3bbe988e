"""conda-lock's own API, for the programs that use it: its private names stand here only.

conda-lock runs a conda or a micromamba, and downloads one if it must; here a function solves
in its place (`conda_lock.conda_solver.solve_specs_for_arch`). Each program is a process of
its own, so nobody else meets what is replaced.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import conda_lock.conda_solver
import yaml
from conda_lock.conda_lock import create_lockfile_from_spec
from conda_lock.lockfile import write_conda_lock_file
from conda_lock.lockfile.v2prelim.models import HashModel, LockedDependency, Lockfile
from conda_lock.models.channel import Channel
from conda_lock.models.lock_spec import LockSpecification
from conda_lock.src_parser.conda_common import conda_spec_to_versioned_dep
from conda_lock.virtual_package import (
    DEFAULT_VIRTUAL_PACKAGES_YAML_PATH,
    FakeRepoData,
    default_virtual_package_repodata,
    virtual_package_repo_from_specification,
)

from envd.lock.conda import CondaQuestion
from envd.spec.conda_package import CondaPackage

# A package that is to be fetched, as conda's `--dry-run --json` describes it.
Action: TypeAlias = dict[str, Any]
Virtual: TypeAlias = FakeRepoData
Found: TypeAlias = Lockfile

_with_executable = conda_lock.conda_solver.solve_specs_for_arch


def lock(question: CondaQuestion, solve: Callable[[str], list[Action]], virtual: Virtual) -> Found:
    """Return the lock of *question*, with the packages that *solve* finds for a platform.

    What conda-lock makes of the match specs goes into the `content_hash` and nowhere else:
    of several for one package it keeps the last (conda/conda-lock#919).
    """

    def solve_specs_for_arch(
        conda: str, channels: Sequence[Channel], specs: list[str], platform: str
    ) -> dict[str, Any]:
        del conda, channels, specs
        return {"actions": {"LINK": [], "FETCH": solve(platform)}}

    conda_lock.conda_solver.solve_specs_for_arch = solve_specs_for_arch
    conda_lock.conda_solver.apply_categories = _all_are_main
    asked = [conda_spec_to_versioned_dep(one, "main") for one in question.packages]
    spec = LockSpecification(
        dependencies={platform: list(asked) for platform in question.platforms},
        channels=_channels(question),
        sources=[],
    )
    return create_lockfile_from_spec(
        conda="", spec=spec, lockfile_path=Path(), virtual_package_repo=virtual, mapping_url=""
    )


def action(package: CondaPackage) -> Action:
    """Return *package* as `lock` takes it."""
    return {
        "name": package.name,
        "version": package.version,
        "url": package.url,
        "md5": package.md5,
        "sha256": package.sha256,
        "depends": list(package.depends),
    }


def with_executable(
    exe: str, question: CondaQuestion, platform: str, virtual: Virtual
) -> list[Action]:
    """Solve *question* as conda-lock does, with a conda, mamba or micromamba.

    Raises:
        subprocess.CalledProcessError: it failed; its output is JSON that says why.
        OSError: it cannot be run.
    """
    channels = [*_channels(question), virtual.channel]
    found = _with_executable(exe, channels, list(question.packages), platform)
    return list(found["actions"]["FETCH"])


def default_virtual_packages() -> Virtual:
    """Return the virtual packages that conda-lock takes every platform to have."""
    return default_virtual_package_repodata()


def virtual_packages(platform: str, detected: dict[str, str]) -> Virtual:
    """Return the same, but for *platform* those that were *detected*.

    They are by name: a version and a build.
    """
    document = yaml.safe_load(DEFAULT_VIRTUAL_PACKAGES_YAML_PATH.read_text())
    document["subdirs"][platform] = {"packages": detected}
    path = Path(tempfile.mkdtemp()) / "virtual-packages.yml"
    path.write_text(yaml.safe_dump(document))
    return virtual_package_repo_from_specification(path)


def of(virtual: Virtual, platform: str) -> Iterator[tuple[str, str, str]]:
    """Yield name, version and build of the *virtual* packages that *platform* has."""
    for package, platforms in virtual.packages_by_subdir.items():
        if platform in platforms:
            yield package.name, package.version, package.build


def text(found: Found, pip: Iterable[tuple[str, str, str, str, str]]) -> str:
    """Return the `conda-lock.yml` of what was *found*, and of packages for pip.

    Each of these is name, version, URL, SHA-256 and platform.
    """
    for name, version, url, sha256, platform in pip:
        one = LockedDependency(
            name=name,
            version=version,
            manager="pip",
            platform=platform,
            url=url,
            hash=HashModel(sha256=sha256),
            categories={"main"},
        )
        found.package.append(one)
    path = Path(tempfile.mkdtemp()) / "conda-lock.yml"
    write_conda_lock_file(found, path, metadata_choices=None)
    return path.read_text()


def _channels(question: CondaQuestion) -> list[Channel]:
    return [Channel(url=one, used_env_vars=()) for one in question.channels]


def _all_are_main(*, planned: dict[str, LockedDependency], **_: object) -> None:
    """Put every package into the category "main".

    conda-lock walks all paths through the dependencies instead: 10 layers of 6 packages each
    would take a minute.
    """
    for one in planned.values():
        one.categories.add("main")
