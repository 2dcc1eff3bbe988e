"""How a model failed, what is known of it then, and what that comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from packaging import utils

from envd.errors import EnvdError
from envd.spec.conda_names import pypi_version

_LINE = re.compile(r'^  File "(?P<file>[^"]+)", line \d+, in ', re.MULTILINE)
_NO_MODULE = re.compile(r"No module named '?(?P<module>[A-Za-z_][\w.]*)'?")


# A model says what it likes, and looking through a megabyte of that takes minutes.
_MOST_TOLD = 8_000


@dataclass(frozen=True, slots=True)
class Failure:
    """How a model failed: what its worker said, or what became of that.

    `stage` is `load` where it was being loaded. `exception` is the name of what was raised.
    """

    reason: str
    message: str
    stage: str = ""
    module: str = ""
    exception: str = ""
    traceback: str = ""

    @classmethod
    def of(cls, error: EnvdError) -> Failure:
        """Return the failure that *error* tells of."""
        about = error.metadata
        return cls(
            error.reason,
            error.message[:_MOST_TOLD],
            about.get("stage", ""),
            about.get("module", ""),
            about.get("exception", ""),
            about.get("traceback", "")[-_MOST_TOLD:],
        )

    @property
    def text(self) -> str:
        """All that was said."""
        return f"{self.message}\n{self.traceback}"

    @property
    def missing(self) -> str:
        """The module that was not found, with its package; empty if that was not it."""
        # The last is that of the exception itself, where others were the cause of it.
        found = _NO_MODULE.findall(self.traceback) or _NO_MODULE.findall(self.message)
        if self.reason == "IMPORT_FAILED":
            own = [one for one in found if one.partition(".")[0] == self.module]
            return own[-1] if own else self.module
        is_import = self.exception in {"ModuleNotFoundError", "ImportError"}
        return found[-1] if found and is_import else ""

    @property
    def importer(self) -> str:
        """The file whose import, or whose unpickling, failed."""
        files = [one["file"] for one in _LINE.finditer(self.traceback)]
        own = [one for one in files if "importlib" not in one]
        return own[-1] if own else ""


@dataclass(frozen=True, slots=True)
class About:
    """What is known of the model and the environment in which it failed.

    `installed` and `recorded` are versions by the normalized names of distributions: those in
    the environment, and those that the model says it was made with. `logged` is the Python
    that it was made with, `python` that of the environment. `loader` is its loader module,
    `path` where it lies.
    """

    installed: Mapping[str, str] = field(default_factory=dict)
    recorded: Mapping[str, str] = field(default_factory=dict)
    python: str = ""
    logged: str = ""
    loader: str = ""
    code: str = ""
    path: str = ""

    def version(self, distribution: str) -> str:
        """Return the version of *distribution* that is installed, empty if none is."""
        return self.installed.get(utils.canonicalize_name(distribution), "")

    def wanted(self, distribution: str) -> str:
        """Return the requirement for the version it was made with, if another is there."""
        version = self.recorded.get(utils.canonicalize_name(distribution), "")
        here = self.version(distribution)
        if not version or (here and pypi_version(here) == pypi_version(version)):
            return ""
        return f"{distribution}=={version}"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a model lacks.

    A `remedy` is a requirement that supplies it without a doubt; `candidates` are distributions
    that may. The `subject` is what is missing: a module, a library, a file. It is `imported` if
    it is a module that a statement asks for, and may well be a distribution's.
    """

    code: str
    message: str
    advice: str
    subject: str = ""
    remedy: str = ""
    candidates: tuple[str, ...] = ()
    imported: bool = False
