"""Distributions as an installer leaves them, in a folder of a test's own."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Site:
    """A folder on PYTHONPATH, called as those in which packages are."""

    folder: Path

    def add(
        self,
        name: str,
        files: Mapping[str, str],
        *requires: str,
        version: str = "1.0",
        extras: tuple[str, ...] = (),
        origin: object = None,
        installer: str = "pip",
    ) -> None:
        """Install a distribution of *files* over whatever is there."""
        info = f"{name.replace('-', '_')}-{version}.dist-info"
        head = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
        head += [f"Requires-Dist: {one}" for one in requires]
        head += [f"Provides-Extra: {one}" for one in extras]
        whole = {
            **files,
            f"{info}/METADATA": "\n".join(head) + "\n",
            f"{info}/INSTALLER": installer,
        }
        if origin:
            whole[f"{info}/direct_url.json"] = json.dumps(origin)
        rows = [f"{path},{_hash(text)},{len(text)}" for path, text in whole.items()]
        whole[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"])
        for path, text in whole.items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_text(text)


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).decode().rstrip("=")


def bare(folder: Path) -> Path:
    """Make a Python that has nothing but its standard library, and return it."""
    options = ["-I", "-m", "venv", "--without-pip", "--symlinks"]
    subprocess.run([sys._base_executable, *options, folder], check=True)
    return folder / "bin" / "python"
