"""Wheels of a few bytes and models that need only those: real builds in half a second."""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

_LOADER = """
import json
import tiny_a


class Model:
    def predict(self, data):
{body}


def _load_pyfunc(path):
    return Model()
"""
ECHO = "        return [tiny_a.VERSION, data]"


def wheel(folder: Path, name: str, version: str, **files: str) -> Path:
    """Write the wheel of a distribution whose modules are *files*."""
    module = name.replace("-", "_")
    path = folder / f"{module}-{version}-py3-none-any.whl"
    info = f"{module}-{version}.dist-info"
    contents = {f"{key}.py": value for key, value in files.items()} | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{key},,\n" for key in [*contents, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for key, value in (contents | {f"{info}/RECORD": record}).items():
            archive.writestr(key, value)
    return path


_BACKEND = """
import os, sys, time, zipfile

MODULE = ""
METADATA = "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"

def build_wheel(folder, settings=None, metadata=None):
    {build}
    name = "{module}-{version}-py3-none-any.whl"
    info = "{module}-{version}.dist-info"
    files = {{
        "{module}.py": MODULE,
        info + "/METADATA": METADATA,
        info + "/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        info + "/RECORD": "{module}.py,,\\n",
    }}
    date = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))[:6]
    with zipfile.ZipFile(os.path.join(folder, name), "w") as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path, date), text)
    return name

def prepare_metadata_for_build_wheel(folder, settings=None):
    info = "{module}-{version}.dist-info"
    os.makedirs(os.path.join(folder, info))
    with open(os.path.join(folder, info, "METADATA"), "w") as file:
        file.write(METADATA)
    return info
"""


def source(name: str, version: str, build: str = "", *requires: str) -> dict[str, str]:
    """Return the files of a source tree whose backend runs *build* before it makes a wheel.

    *build* may set MODULE, the text of the module; *requires* is what it is built with.
    """
    module = name.replace("-", "_")
    backend = _BACKEND.format(build=build or "pass", module=module, version=version, name=name)
    return {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "pyproject.toml": (
            f"[build-system]\nrequires = {list(requires)}\nbuild-backend = 'backend'\n"
            f"backend-path = ['.']\n[project]\nname = '{name}'\nversion = '{version}'\n"
        ),
        "backend.py": backend,
    }


def tree(folder: Path, name: str, version: str, build: str = "", *requires: str) -> Path:
    """Write a source tree into *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    for key, value in source(name, version, build, *requires).items():
        (folder / key).write_text(value)
    return folder


def sdist(folder: Path, name: str, version: str, build: str = "", *requires: str) -> Path:
    """Write a source distribution."""
    top = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{top}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for key, value in source(name, version, build, *requires).items():
            entry = tarfile.TarInfo(f"{top}/{key}")
            entry.size = len(value.encode())
            archive.addfile(entry, io.BytesIO(value.encode()))
    return path


def tools(folder: Path) -> Path:
    """Make a directory for PATH: git, and the Python that runs the tests as the only one."""
    folder.mkdir()
    (folder / "python3").symlink_to(sys._base_executable)
    # Of git's commands some are shell scripts.
    for name in ("git", "basename", "sed", "uname"):
        (folder / name).symlink_to(shutil.which(name) or f"/usr/bin/{name}")
    return folder


@dataclass(frozen=True)
class Tiny:
    """A folder of wheels, and models made to need them."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Tiny:
        (folder / "wheels").mkdir()
        wheel(folder / "wheels", "tiny-a", "1.0", tiny_a="VERSION = '1.0'\n")
        wheel(folder / "wheels", "tiny-a", "2.0", tiny_a="VERSION = '2.0'\n")
        wheel(folder / "wheels", "tiny-b", "1.0", tiny_b="VERSION = '1.0'\n")
        wheel(folder / "wheels", "setuptools", "68.0", setuptools="")
        tools(folder / "tools")
        return cls(folder)

    @property
    def wheels(self) -> Path:
        return self.folder / "wheels"

    @property
    def index(self) -> dict[str, str]:
        """The variables that make the wheels the only index."""
        return {"ENVD_INDEX__NO_INDEX": "true", "ENVD_INDEX__FIND_LINKS": str(self.wheels)}

    @property
    def settings(self) -> dict[str, str]:
        """Those of the index, and those that hide the other Pythons: each is asked what it is."""
        path = str(self.folder / "tools")
        return self.index | {"PATH": path, "PYENV_ROOT": path}

    def model(
        self,
        path: Path,
        *requirements: str,
        python: str = "{}.{}.{}".format(*sys.version_info),
        body: str = ECHO,
    ) -> Path:
        """Write a model without mlflow, whose `predict(self, data)` runs *body*."""
        (path / "code").mkdir(parents=True)
        (path / "code" / "tiny_loader.py").write_text(_LOADER.format(body=body))
        (path / "requirements.txt").write_text("\n".join(requirements or ("tiny-a",)))
        (path / "python_env.yaml").write_text(
            f"python: {python}\ndependencies:\n- -r requirements.txt\n"
        )
        (path / "MLmodel").write_text(
            "flavors:\n  python_function:\n    loader_module: tiny_loader\n    code: code\n"
            "    env:\n      virtualenv: python_env.yaml\n"
        )
        return path
