"""Models written from a few lines, and their spec_keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from envd import config, spec
from envd.model import read as read_model
from envd.spec import Python, Spec

PYTHON = Python("cpython", "3.11.7", "cpython-311-x86_64-linux-gnu", "linux-x86_64", "glibc-2.36")
PYTHON_ENV = "python: 3.11.7\nbuild_dependencies: [pip]\ndependencies: [-r requirements.txt]\n"
LOGGED = "2024-02-14 09:30:00.123456"


@dataclass(frozen=True)
class Asked:
    """A model, what a caller adds to it, the settings, and the Python that was found for it.

    `{model}` in its files is the directory it lies in. Without `python_env` it has none.
    """

    requirements: str | bytes | None
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    python_env: str = PYTHON_ENV
    logged: str = LOGGED
    override: tuple[str, ...] = ()
    python: Python = PYTHON
    settings: Mapping[str, str] = field(default_factory=dict)

    def write(self, model: Path) -> None:
        """Write the model."""
        files: dict[str, str | bytes] = {
            "MLmodel": f"utc_time_created: '{self.logged}'\n"
            "flavors: {python_function: {loader_module: mine}}\n"
        }
        if self.requirements is not None:
            files["requirements.txt"] = self.requirements
        if self.python_env:
            files["python_env.yaml"] = self.python_env
        for name, content in {**files, **self.files}.items():
            path = model / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.write_text(content.replace("{model}", str(model)))
            else:
                path.write_bytes(content)

    def spec(self, model: Path) -> Spec:
        """Write the model and read its spec."""
        self.write(model)
        variables = {f"ENVD_{name}": value for name, value in self.settings.items()}
        settings = config.load(root=model.parent, environ=variables)
        found = spec.read(read_model(model), settings, spec.Terms(self.override))
        return spec.of(found, self.python, settings.index)
