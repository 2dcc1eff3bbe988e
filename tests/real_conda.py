"""The conda 24.7 that conda-lock brings with it, as a command: what others are compared with."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uv import find_uv_bin

# What conda needs and conda-lock does not.
_NEEDS = (
    "archspec==0.2.5", "conda-package-handling==2.4.0", "jsonpatch==1.33", "pluggy==1.6.0",
    "pycosat==0.6.6", "tqdm==4.67.1",
)  # fmt: skip
# Its own entry point wants to be called so; a process that it starts imports this file.
_PROGRAM = """\
#!{python}
import os, sys
sys.path[:0] = {paths!r}
os.environ["CONDA_SOLVER"] = "classic"
from conda.cli.main import main
if __name__ == "__main__":
    sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class RealConda:
    """A conda, and a home of its own with a `.condarc`."""

    exe: Path
    home: Path

    @classmethod
    def make(cls, folder: Path) -> RealConda:
        """Make one in the directory *folder*."""
        needed, exe, home = folder / "needed", folder / "conda", folder / "home"
        subprocess.run(
            [find_uv_bin(), "pip", "install", "--quiet", "--no-config", "--system-certs",
             "--python", sys.executable, "--target", needed, *_NEEDS],
            check=True,
        )  # fmt: skip
        conda_lock = importlib.util.find_spec("conda_lock")
        assert conda_lock is not None
        assert conda_lock.origin is not None
        paths = [str(Path(conda_lock.origin).parent / "_vendor"), str(needed)]
        exe.write_text(_PROGRAM.format(python=sys.executable, paths=paths))
        exe.chmod(0o755)
        home.mkdir()
        return cls(exe, home)

    def configure(self, **settings: object) -> None:
        """Write its `.condarc`."""
        (self.home / ".condarc").write_text(json.dumps(settings))

    def solve(self, *specs: str, platform: str = "linux-64") -> list[dict[str, Any]]:
        """Return what it would fetch of conda-forge for a new environment."""
        argv = [
            self.exe, "create", "--dry-run", "--json", "--override-channels",
            "--channel", "conda-forge", "--prefix", self.home / "prefix", *specs,
        ]  # fmt: skip
        env = {
            "HOME": str(self.home),
            "CONDA_SUBDIR": platform,
            "CONDA_PKGS_DIRS": str(self.home / "packages"),
            "CONDA_ADD_PIP_AS_PYTHON_DEPENDENCY": "false",
        }
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        found = json.loads(done.stdout)
        assert "actions" in found, found
        return list(found["actions"]["FETCH"])
