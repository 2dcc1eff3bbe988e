"""Reads a file of variables that nobody else may read: KEY=VALUE, one in each line."""

from __future__ import annotations

from envd.access import private_file
from envd.access.private_file import refused
from envd.secrets import Secret
from envd.settings.values import is_variable

_WHAT = "the variables' file"
_QUOTES = ("'", '"')


def read(path: str) -> dict[str, str]:
    """Return the variables in the file *path*; empty lines and those with a `#` first are none.

    A value is all that follows the `=`, without the quotes around it.

    Raises:
        SettingsInvalidError: it cannot be read, others can read it, or it is no such file.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(private_file.read(path, _WHAT).splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        name, equals, value = stripped.partition("=")
        if not equals or not is_variable(name.strip()) or "\0" in value:
            # Not the line itself: it may be the rest of a secret.
            raise refused(path, _WHAT, f"has no KEY=VALUE in line {number}")
        found[name.strip()] = Secret(_unquoted(value.strip()))
    return found


def _unquoted(value: str) -> str:
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in _QUOTES
    return value[1:-1] if is_quoted and value.count(value[0]) == len(_QUOTES) else value
