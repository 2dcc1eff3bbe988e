"""What a model asks for on one Python, as it goes from whoever asks to whoever builds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from envd import spec as specs
from envd.build import Interpreter
from envd.config import Settings
from envd.events import Note
from envd.model import Model
from envd.spec import Dependencies, Spec
from envd.spec.conda_package import CondaPackage, conda_package
from envd.spec.python import python_of_conda
from envd.spec.spec import from_canonical


@dataclass(frozen=True, slots=True)
class Asked:
    """A spec with what is needed to build it and is not part of its key.

    `model` is the model's directory, whose own packages a lock may be made of, and `day`
    the day it was logged. A conda environment has its own `interpreter`. The values of its
    `variables` may be secrets, which only the manifest keeps. What is `locked` was so in the
    model.
    """

    spec: Spec
    requested_python: str | None
    interpreter: Path | None
    modules: tuple[str, ...]
    notes: tuple[Note, ...]
    model: Path
    day: str | None
    variables: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    locked: tuple[CondaPackage, ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        model: Model,
        dependencies: Dependencies,
        interpreter: Interpreter | None,
        note: Note | None,
        settings: Settings,
    ) -> Asked:
        """Return what *model* asks for on *interpreter*, which was chosen with *note*.

        There is none where the manager is conda.

        Raises:
            ModelInvalidError: a lock that lies in the model does not fit its requirements.
        """
        is_mlflow = model.loader_module.split(".")[0] == "mlflow"
        python = interpreter.python if interpreter else python_of_conda(dependencies.python or "")
        found = dependencies.on(python)
        notes = (*found.notes, *found.asked.notes)
        return cls(
            spec=specs.of(found, python, settings.index),
            requested_python=found.python,
            interpreter=interpreter.path if interpreter else None,
            modules=("mlflow.pyfunc", model.loader_module) if is_mlflow else (),
            notes=(*notes, note) if note else notes,
            model=model.path,
            day=found.day,
            variables=found.variables,
            locked=found.locked,
        )

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Asked:
        """Return what `document` described."""
        return cls(
            spec=from_canonical(document["spec"]),
            requested_python=document["requested_python"],
            interpreter=Path(document["interpreter"]) if document["interpreter"] else None,
            modules=tuple(document["modules"]),
            notes=tuple(Note(**note) for note in document["notes"]),
            model=Path(document["model"]),
            day=document["day"],
            variables=tuple((name, value) for name, value in document["variables"]),
            locked=tuple(map(conda_package, document["locked"])),
        )

    def document(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "spec": self.spec.canonical(),
            "requested_python": self.requested_python,
            "interpreter": str(self.interpreter) if self.interpreter else None,
            "modules": self.modules,
            "notes": [note.document() for note in self.notes],
            "model": str(self.model),
            "day": self.day,
            "variables": self.variables,
            "locked": [asdict(one) for one in self.locked],
        }
