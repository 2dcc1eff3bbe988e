"""How the daemon writes its log: lines of text, or a JSON object in each.

Where that goes to systemd's journal, each line begins with its priority (sd-daemon(3)), and
text has no time of its own.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from envd import plain

_TEXT = "%(levelname)s %(name)s%(request)s: %(message)s"
# logging's levels as syslog(3) has them.
_PRIORITIES = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


def begin(form: Literal["text", "json"], *, verbose: bool) -> None:
    """Write what is logged in this process from now on to standard error in that *form*."""
    is_journal = _is_journal()
    inner = _Json() if form == "json" else _text(with_time=not is_journal)
    handler = logging.StreamHandler()
    handler.setFormatter(_Journal(inner) if is_journal else inner)
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, handlers=[handler])


def _text(*, with_time: bool) -> logging.Formatter:
    line = f"%(asctime)s {_TEXT}" if with_time else _TEXT
    return _Text(line, defaults={"request": ""})


class _Text(logging.Formatter):
    """One line for each message, and lines that are set in for an exception.

    What models raise stands in both: none of it is to look like a line of envd's own.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return *record* without its exception."""
        record.message = plain.printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Return the traceback of *ei*."""
        lines = super().formatException(ei).splitlines()
        return "\n".join(f"  {plain.printable(line)}" for line in lines)


class _Json(logging.Formatter):
    """One object in one line, whatever the message holds."""

    def format(self, record: logging.LogRecord) -> str:
        """Return *record* as JSON: `request`, `audit` and `exception` where there is one."""
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := getattr(record, "request", "").strip(" []"):
            document["request"] = request
        if audit := getattr(record, "audit", None):
            document["audit"] = audit
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False)


class _Journal(logging.Formatter):
    """What another one writes, with the priority of each line."""

    def __init__(self, inner: logging.Formatter) -> None:
        """Write as *inner* does."""
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of *record*."""
        mark = f"<{_PRIORITIES.get(record.levelno, 5)}>"
        return "\n".join(mark + line for line in self._inner.format(record).splitlines())


def _is_journal(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether standard error is the journal, and not just that of whoever started this."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
