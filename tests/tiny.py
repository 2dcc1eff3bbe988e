"""Wheels of a few bytes and models that need only those: real builds in half a second."""

from __future__ import annotations

import io
import sys
import tarfile
import textwrap
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


def sdist(folder: Path, name: str, version: str, build: str) -> Path:
    """Write a source distribution whose build backend runs *build* before it makes a wheel."""
    module = name.replace("-", "_")
    backend = textwrap.dedent("""
        import os, sys, zipfile

        def build_wheel(folder, settings=None, metadata=None):
            {build}
            name = "{module}-{version}-py3-none-any.whl"
            info = "{module}-{version}.dist-info"
            with zipfile.ZipFile(os.path.join(folder, name), "w") as archive:
                archive.writestr("{module}.py", "")
                archive.writestr(info + "/METADATA", METADATA)
                archive.writestr(info + "/WHEEL",
                    "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
                archive.writestr(info + "/RECORD", "{module}.py,,\\n")
            return name

        def prepare_metadata_for_build_wheel(folder, settings=None):
            info = "{module}-{version}.dist-info"
            os.makedirs(os.path.join(folder, info))
            with open(os.path.join(folder, info, "METADATA"), "w") as file:
                file.write(METADATA)
            return info

        METADATA = "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
    """).format(build=build, module=module, version=version, name=name)
    top = f"{module}-{version}"
    files = {
        f"{top}/PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{top}/pyproject.toml": (
            "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
            f"[project]\nname = '{name}'\nversion = '{version}'\n"
        ),
        f"{top}/backend.py": backend,
    }
    path = folder / f"{top}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for key, value in files.items():
            entry = tarfile.TarInfo(key)
            entry.size = len(value.encode())
            archive.addfile(entry, io.BytesIO(value.encode()))
    return path


@dataclass(frozen=True)
class Tiny:
    """A folder of wheels, and models made to need them."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Tiny:
        (folder / "wheels").mkdir()
        wheel(folder / "wheels", "tiny-a", "1.0", tiny_a="VERSION = '1.0'\n")
        wheel(folder / "wheels", "tiny-a", "2.0", tiny_a="VERSION = '2.0'\n")
        wheel(folder / "wheels", "setuptools", "68.0", setuptools="")
        return cls(folder)

    @property
    def wheels(self) -> Path:
        return self.folder / "wheels"

    @property
    def settings(self) -> dict[str, str]:
        """The variables that make the wheels the only index."""
        return {"ENVD_INDEX__NO_INDEX": "true", "ENVD_INDEX__FIND_LINKS": str(self.wheels)}

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
