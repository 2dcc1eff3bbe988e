"""What envd uses of conda-lock and rattler that neither promises to keep.

Where one of these fails after an upgrade, the module it names has to be looked through.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tests.conda_channel import Channel, Package

# Names, and the parameters or fields of them that are used.
_CONDA_LOCK = {
    "conda_lock.conda_lock:create_lockfile_from_spec": [
        "conda", "spec", "lockfile_path", "virtual_package_repo", "mapping_url"
    ],
    "conda_lock.conda_solver:apply_categories": ["planned"],
    "conda_lock.conda_solver:solve_specs_for_arch": ["conda", "channels", "specs", "platform"],
    "conda_lock.lockfile:write_conda_lock_file": ["content", "path", "metadata_choices"],
    "conda_lock.lockfile.v2prelim.models:HashModel": ["md5", "sha256"],
    "conda_lock.lockfile.v2prelim.models:LockedDependency": [
        "name", "version", "manager", "platform", "url", "hash", "categories", "dependencies"
    ],
    "conda_lock.lockfile.v2prelim.models:Lockfile": ["package", "metadata"],
    "conda_lock.models.channel:Channel": ["url", "used_env_vars"],
    "conda_lock.models.lock_spec:LockSpecification": ["dependencies", "channels", "sources"],
    "conda_lock.src_parser.conda_common:conda_spec_to_versioned_dep": ["spec", "category"],
    "conda_lock.virtual_package:DEFAULT_VIRTUAL_PACKAGES_YAML_PATH": [],
    "conda_lock.virtual_package:FakeRepoData": ["packages_by_subdir"],
    "conda_lock.virtual_package:FakeRepoData.channel": [],
    "conda_lock.virtual_package:default_virtual_package_repodata": [],
    "conda_lock.virtual_package:virtual_package_repo_from_specification": [
        "virtual_package_spec_file"
    ],
}  # fmt: skip
_RATTLER = {
    "rattler:Channel": ["name"],
    "rattler:BuildString": [],
    "rattler:Gateway": ["cache_dir", "default_config", "client"],
    "rattler:Gateway.query": ["sources", "platforms", "specs", "recursive", "channel_relations"],
    "rattler:GenericVirtualPackage": ["name", "version", "build_string"],
    "rattler:MatchSpec": ["spec", "strict"],
    "rattler:MatchSpec.matches": ["record"],
    "rattler:PackageName.normalized": [],
    "rattler:RepoDataRecord": ["url"],
    "rattler:PackageRecord": [
        "name", "version", "build", "build_number", "subdir", "sha256", "md5", "size", "noarch",
        "depends", "constrains", "python_site_packages_path"
    ],
    "rattler:SourceConfig": ["cache_action"],
    "rattler:Subdir.current": [],
    "rattler:Version": [],
    "rattler:VirtualPackage.detect": ["overrides"],
    "rattler:VirtualPackage.into_generic": [],
    "rattler:VirtualPackageOverrides.from_env": [],
    "rattler:solve": [
        "sources", "specs", "gateway", "platforms", "virtual_packages", "exclude_newer",
        "timestamp_policy", "channel_relations"
    ],
    "rattler.exceptions:GatewayError": [],
    "rattler.exceptions:InvalidMatchSpecError": [],
    "rattler.exceptions:SolverError": [],
    "rattler.networking:AddHeadersMiddleware": ["callback"],
    "rattler.networking:AuthenticationMiddleware": [],
    "rattler.networking:Client": ["middlewares"],
    "rattler.networking:MirrorMiddleware": ["mirrors"],
    "rattler.networking:RetryMiddleware": ["max_retries"],
}  # fmt: skip
_NATIVE = {
    f"rattler.rattler:{name}": parameters
    for name, parameters in {
        "InstallerError": [],
        "ParseSubdirError": [],
        "PyArch.as_str": [],
        "PyBuildString": ["value"],
        "PyClientWithMiddleware": ["middlewares"],
        "PyConfig.from_toml": ["toml"],
        "PyMirrorMiddleware": [],
        "PyNoArchType.generic": [],
        "PyNoArchType.none": [],
        "PyNoArchType.python": [],
        "PyPackageCache.new_layered": ["paths", "validation_mode"],
        "PyPackageName": ["source"],
        "PyRecord.create": [
            "name", "version", "build", "build_number", "subdir", "arch", "platform", "noarch",
            "python_site_packages_path"
        ],
        "PyRecord.create_repodata_record": ["package_record", "file_name", "url", "channel"],
        "PySubdir.arch": [],
        "PySubdir.only_platform": [],
        "PyValidationMode.skip": [],
        "PyVersion": ["version"],
        "py_install": [
            "records", "target_prefix", "installed_packages", "client", "execute_link_scripts",
            "config", "package_cache"
        ],
    }.items()
}  # fmt: skip
_LOOK = """
import functools, importlib, inspect, json, os, sys

missing = []
for name, wanted in json.loads(sys.argv[1]).items():
    module, _, path = name.partition(":")
    try:
        found = functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError):
        missing.append(name)
        continue
    if wanted:
        known = getattr(found, "model_fields", None) or inspect.signature(found).parameters
        missing += [f"{name} {one}" for one in wanted if one not in known]
print(json.dumps(missing), flush=True)
os._exit(0)
"""
_LOCK = """
import json, os, pathlib, sys, tempfile

tempfile.tempdir = sys.argv[1]
from conda_lock import conda_solver
from envd.lock import conda_lock_api
from envd.lock.conda import CondaQuestion

asked = []
action = {"name": "word", "version": "1.0", "url": "https://host/c/noarch/word-1.0-0.conda",
          "md5": "0" * 32, "sha256": "1" * 64, "depends": ["nowhere"]}
lock = conda_lock_api.lock(
    CondaQuestion(("c",), ("word", "word >=1"), ("linux-64", "osx-arm64")),
    lambda platform: asked.append(platform) or [dict(action)],
    conda_lock_api.default_virtual_packages(),
)
print(json.dumps([
    asked,
    [[one.name, one.platform, sorted(one.categories)] for one in lock.package],
    sorted(os.listdir(sys.argv[1]))[0].rstrip("abcdefghijklmnopqrstuvwxyz0123456789_"),
]), flush=True)
os._exit(0)
"""
_FAIL = """
import asyncio, datetime, json, os, sys
import rattler, rattler.exceptions

async def text(specs):
    try:
        await rattler.solve(
            [rattler.Channel(one) for one in json.loads(sys.argv[1])], specs,
            platforms=["linux-64", "noarch"], gateway=rattler.Gateway(cache_dir=sys.argv[2]),
            exclude_newer=datetime.datetime(2020, 1, 1),
        )
    except rattler.exceptions.SolverError as error:
        return str(error)

print(json.dumps([asyncio.run(text(one)) for one in json.loads(sys.argv[3])]), flush=True)
os._exit(0)
"""


def run(program: str, *arguments: str) -> Any:
    """Run *program* by itself: rattler crashes at times when an interpreter ends."""
    argv = [sys.executable, "-W", "ignore", "-c", program, *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("names", "user"),
    [(_CONDA_LOCK, "envd/lock/conda_lock_api.py"),
     (_RATTLER, "envd/lock/conda_solver.py and envd/lock/rattler_program.py"),
     (_NATIVE, "envd/build/conda_installer.py")],
    ids=["conda-lock", "rattler", "native"],
)  # fmt: skip
def test_the_names_that_are_used_are_there(names: dict[str, list[str]], user: str) -> None:
    missing = run(_LOOK, json.dumps(names))

    assert missing == [], f"this is gone, and {user} uses it: {', '.join(missing)}"


def test_conda_lock_solves_and_sorts_as_it_is_told_to(tmp_path: Path) -> None:
    asked, packages, temporary = run(_LOCK, str(tmp_path))

    why = "conda-lock goes past what envd/lock/conda_lock_api.py puts in its place"
    assert asked == ["linux-64", "osx-arm64"], why
    # Its own way would miss `nowhere`.
    assert packages == [["word", "linux-64", ["main"]], ["word", "osx-arm64", ["main"]]], why
    assert temporary == "conda-lock-fake-repodata-", "conda-lock writes elsewhere than it is told"


def test_rattler_words_failures_as_they_are_read(channel: Channel, tmp_path: Path) -> None:
    channel.add(
        Package("word", "1.0"),
        Package("word", "2.0"),
        Package("old", depends=["word <2"]),
        Package("new", depends=["word >=2"]),
        Package("jealous", constrains=["word >=9"]),
        Package("broken", depends=["nowhere"]),
        Package("later", published=date(2020, 2, 1)),
    )
    other = Channel(tmp_path / "other")
    other.add(Package("word", "3.0"))
    places = json.dumps([channel.folder.as_uri(), other.folder.as_uri()])
    cases = {
        ("old", "new"): [
            "The following packages are incompatible\n├─ ",
            " can be installed with any of the following options:\n│  └─ ",
            ", which conflicts with the versions reported above.",
        ],
        ("word", "jealous"): [
            " would constrain\n",
            ", which conflicts with any installable versions previously reported",
        ],
        ("broken",): [
            "broken * cannot be installed because there are no viable options:\n└─ ",
            "broken 1.0 would require\n   └─ nowhere *, for which no candidates were found.",
        ],
        ("later",): [" is excluded because ", " after the cutoff date of "],
        ("word ==3.0", "word"): [
            " is excluded because ",
            "strict channel priority not using this option from: '",
        ],
    }

    texts = run(_FAIL, places, str(tmp_path / "cache"), json.dumps(list(cases)))

    for text, phrases in zip(texts, cases.values(), strict=True):
        for one in ("Cannot solve the request because of: ", *phrases):
            assert one in text, f"envd/lock/conda_explanation.py looks for {one!r}"
