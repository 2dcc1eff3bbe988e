"""What a model is called: a name it is served by, a path, or a URI."""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Iterable, Sequence
from urllib.parse import unquote

from envd.errors import ModelNotFoundError
from envd.settings.served import Served, refused_name

_MOST_NEAR = 3
_FILE = "file:///"
# The name of a model in a registry, and the version or alias behind it.
_REGISTERED = re.compile(r"models:/+([^/@]+).*")


def is_name(text: str) -> bool:
    """Whether *text* is a name: a `/`, a `:` or a leading `.` makes it a path or a URI."""
    return not (text.startswith(".") or "/" in text or ":" in text)


def uri_of(text: str, served: Iterable[Served]) -> str:
    """Return the path or the URI that *text* stands for.

    Raises:
        ModelNotFoundError: it is a name, and none of *served* has it.
    """
    if not is_name(text):
        return text
    by_name = {one.name: one for one in served}
    if text in by_name:
        return by_name[text].uri
    near = difflib.get_close_matches(text, by_name, _MOST_NEAR)
    names = " or ".join(f"`{one}`" for one in near)
    message = (
        f"no served model is called `{text}`; "
        f"{f'give {names}' if near else 'give one that is'}, or a path: with a `/` in it"
    )
    raise ModelNotFoundError(message, model=text, near=",".join(near) or None)


def find(text: str, served: Sequence[Served]) -> Served | None:
    """Return the model of *served* that is called *text*, or the first whose path or URI it is."""
    named = [one for one in served if one.name == text]
    same = [one for one in served if canonical(one.uri) == canonical(text)]
    return next(iter(named + same), None)


def canonical(uri: str) -> str:
    """Return *uri* as others that mean the same directory are written, too."""
    path = f"/{unquote(uri.removeprefix(_FILE))}" if uri.startswith(_FILE) else uri
    return posixpath.normpath(path) if path.startswith("/") else path


def likely(uri: str) -> str:
    """Return a name for the model at *uri* that has none: what its registry or folder calls it."""
    found = _REGISTERED.sub(r"\1", uri).rstrip("/").rpartition("/")[2]
    return "model" if refused_name(found) else found
