"""The manifest: what makes an environment ready, and how it came to be."""

from __future__ import annotations

import errno
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from envd import durable
from envd.events import Note
from envd.lock import Lock
from envd.lock.lock import from_document as lock_from_document
from envd.spec import Python
from envd.store.sizes import Sizes

FORMAT = 2
# Nothing is there, or something else.
_DAMAGE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP})
_UNMEASURED = Sizes(0, 0)


@dataclass(frozen=True, slots=True)
class Base:
    """The interpreter an environment is built on; without it the environment is broken.

    That of a conda environment is its own.
    """

    path: Path
    mtime_ns: int

    @classmethod
    def of(cls, interpreter: Path) -> Base:
        """Return what *interpreter* is now, as the file it is in the end.

        Raises:
            OSError: it is not there.
        """
        path = interpreter.resolve(strict=True)
        return cls(path, path.stat().st_mtime_ns)

    def is_there(self) -> bool:
        """Whether it is still the file it was."""
        try:
            return self.path.stat().st_mtime_ns == self.mtime_ns
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class Manifest:
    """The record of one ready environment. Times are seconds since 1970.

    `profile` is the security profile it was built under, and `sandbox` the tier of the
    sandbox in which that was done: policy is in no key. `modules`
    were imported once when it was built; `variables` are set for whatever runs in it, and may
    be secrets: only this record has their values.
    `sizes`, `shares` (the bytes that lie in the download cache as well, by the SHA-256 of
    the artifact they came from) and `files` (the SHA-256 of the list of all files) are taken
    when it is published.
    """

    env_id: str
    attempt: str
    spec_key: str
    manager: str
    python: Python
    python_requested: str | None
    base: Base
    lock: Lock
    notes: tuple[Note, ...]
    created: float
    seconds: float
    link_mode: str
    profile: str
    modules: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    sizes: Sizes = _UNMEASURED
    shares: tuple[tuple[str, int], ...] = ()
    files: str = ""
    sandbox: int = 0

    def of_model(self) -> tuple[tuple[str, str], ...]:
        """Return the variables that the model sets, not a package."""
        names = {name for name, _ in self.lock.variables}
        return tuple(one for one in self.variables if one[0] in names)

    def document(self) -> dict[str, Any]:
        """Return the manifest as JSON values."""
        # Not by `asdict`, which copies every package of the lock.
        return {one.name: getattr(self, one.name) for one in fields(self)} | {
            "format": FORMAT,
            "python": self.python.document(),
            "base": {"path": str(self.base.path), "mtime_ns": self.base.mtime_ns},
            "lock": self.lock.document(),
            "notes": [note.document() for note in self.notes],
            "sizes": asdict(self.sizes),
        }


def from_document(document: dict[str, Any]) -> Manifest:
    """Return the manifest that `Manifest.document` described.

    Raises:
        KeyError, TypeError, ValueError: it is damaged, or of another format.
    """
    fields = dict(document)
    if fields.pop("format") != FORMAT:
        message = f"manifest format {document['format']} is not {FORMAT}, that of this envd"
        raise ValueError(message)
    fields["python"] = Python(**fields["python"])
    fields["base"] = Base(Path(fields["base"]["path"]), int(fields["base"]["mtime_ns"]))
    fields["lock"] = lock_from_document(fields["lock"])
    fields["notes"] = tuple(Note(**note) for note in fields["notes"])
    fields["modules"] = tuple(fields["modules"])
    fields["variables"] = tuple((name, value) for name, value in fields.get("variables", ()))
    fields["sizes"] = Sizes(**fields["sizes"])
    fields["shares"] = tuple((sha256, size) for sha256, size in fields["shares"])
    return Manifest(**fields)


def read(path: Path) -> Manifest:
    """Return the manifest in the file *path*.

    Raises:
        OSError: it cannot be read.
        KeyError, TypeError, ValueError: it is damaged, or of another format.
    """
    return from_document(durable.read_checked(path))


def find(path: Path) -> Manifest | None:
    """Return the manifest in the file *path*, or None where there is none or it is damaged.

    Raises:
        OSError: it cannot be read, which does not say that it is not there.
    """
    try:
        return read(path)
    except (ValueError, KeyError, TypeError):
        return None
    except OSError as error:
        if error.errno in _DAMAGE:
            return None
        raise


def write(path: Path, manifest: Manifest) -> None:
    """Make *manifest* the one of the environment whose directory *path* lies in."""
    durable.write_checked(path, manifest.document())
