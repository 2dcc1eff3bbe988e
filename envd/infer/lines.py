"""How what was found is written as requirements, and what cannot be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from packaging.utils import canonicalize_name

from envd.events import Note
from envd.infer.observing import Distribution

# The builds of PyTorch that PyPI has not, each with an index of its own.
_TORCH = {"torch", "torchaudio", "torchdata", "torchtext", "torchvision"}
_TORCH_BUILD = re.compile(r"cpu|cu\d+|rocm[\d.]+|xpu")
_TORCH_INDEX = "https://download.pytorch.org/whl"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the set: the distribution's key, why it is there, and who would bring it too."""

    text: str
    key: str
    why: str
    held_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Local:
    """A distribution that no index has: it is worked on in `path`, and brings these modules."""

    name: str
    version: str
    path: str
    modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inferred:
    """What a model needs: lines of a requirement file, options first.

    `local` has to come with the model, or from an index of one's own; `modules` are loaded
    and nobody's: code that has to be in the model. `without` is what was loaded, but the
    model answers the same without it. `python` is the version it all is of.
    """

    options: tuple[str, ...]
    lines: tuple[Line, ...]
    local: tuple[Local, ...]
    modules: tuple[tuple[str, str], ...]
    without: tuple[str, ...]
    notes: tuple[Note, ...]
    python: str
    is_asked: bool

    @property
    def requirements(self) -> tuple[str, ...]:
        """All lines, as a requirement file has them."""
        return (*self.options, *(one.text for one in self.lines))

    def document(self) -> dict[str, object]:
        """Return what `--json` prints."""
        return {
            "requirements": list(self.requirements),
            "options": list(self.options),
            "lines": [
                {"text": one.text, "name": one.key, "why": one.why, "held_by": list(one.held_by)}
                for one in self.lines
            ],
            "local": [
                {
                    "name": one.name,
                    "version": one.version,
                    "path": one.path,
                    "modules": list(one.modules),
                }
                for one in self.local
            ],
            "modules": [{"name": name, "file": file} for name, file in self.modules],
            "without": list(self.without),
            "notes": [one.document() for one in self.notes],
            "python": self.python,
            "asked": self.is_asked,
        }


@dataclass(frozen=True, slots=True)
class Written:
    """A distribution as a line, with the option it takes and what is to be known of it."""

    text: str
    option: str = ""
    note: Note | None = None


def key_of(name: str) -> str:
    """Return the key of the distribution *name*."""
    return canonicalize_name(name)


def local_path(one: Distribution) -> str:
    """Return the folder that *one* was installed from, empty if an index or an archive has it."""
    if one.editable:
        return one.editable
    is_built = one.installer == "conda" or "dir_info" not in one.origin
    return "" if is_built else str(one.origin.get("url", "")).removeprefix("file://")


def written(one: Distribution, extras: tuple[str, ...] = ()) -> Written:
    """Return the line that pins *one*."""
    name = one.name + (f"[{','.join(extras)}]" if extras else "")
    url = str(one.origin.get("url", ""))
    if isinstance(found := one.origin.get("vcs_info"), dict):
        commit = found.get("commit_id") or found.get("requested_revision")
        return _direct(one, name, f"{found.get('vcs', 'git')}+{url}@{commit}")
    if one.installer != "conda" and "archive_info" in one.origin and not url.startswith("file:"):
        return _direct(one, name, url)
    version, plus, build = one.version.partition("+")
    if plus and one.key in _TORCH and _TORCH_BUILD.fullmatch(build):
        option = f"--extra-index-url {_TORCH_INDEX}/{build}"
        message = f"PyPI has no {one.name} {one.version}; its makers' index for {build} is named"
        return Written(f"{name}=={one.version}", option, Note("LOCAL_VERSION", message, one.name))
    note = None
    if plus:
        message = (
            f"{one.name} {one.version} is a build of its own; {version} is asked for, which an "
            "index may have built otherwise"
        )
        note = Note("LOCAL_VERSION", message, one.name)
    elif url.startswith("file:") and one.installer != "conda":
        file = url.rpartition("/")[2]
        message = f"{one.name} was installed from the file {file}; an index must have {version}"
        note = Note("FROM_FILE", message, one.name)
    return Written(f"{name}=={version}", note=note)


def _direct(one: Distribution, name: str, url: str) -> Written:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    bare = urlunsplit(parts._replace(netloc=host))
    # Credentials of whoever installed it are theirs; `git@` is no secret.
    is_secret = ":" in parts.netloc.rpartition("@")[0]
    text = bare if is_secret else url
    message = f"{one.name} was installed from {bare}; it is asked for from there"
    return Written(f"{name} @ {text}", note=Note("FROM_URL", message, one.name))
