"""Runs what uses rattler: programs of their own, for they may crash when they end.

`python PROGRAM IN OUT` reads one JSON document from descriptor IN and writes one to OUT:
`{"done": answer}` or `{"error": document}` of an `EnvdError`. What it prints are lines of
the log.

py-rattler dies of a signal in one of ten processes when the interpreter ends, after all is
done (PyO3/pyo3-async-runtimes#40): a program ends with `os._exit`, and its answer counts,
not its status.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from envd import child, config
from envd.errors import (
    BuildInterruptedError,
    BuildTimedOutError,
    InternalError,
    ManagerMissingError,
    SettingsInvalidError,
    from_document,
)
from envd.events import Line, OnEvent
from envd.lock.tool import Tool
from envd.lock.uv import PASSED
from envd.spec.mirrors import Mirrors

_PASSED = (*PASSED, "RATTLER_AUTH_FILE", "CONDA_OVERRIDE_CUDA", "CONDA_OVERRIDE_GLIBC")
_TAIL = 5


@dataclass(frozen=True, slots=True)
class Rattler(Tool):
    """rattler as one root uses it."""

    @property
    def mirrors(self) -> Mirrors:
        """Where channels are fetched from.

        Raises:
            SettingsInvalidError: it is said of what is no channel.
        """
        return Mirrors.of(self.settings.conda)

    def run(
        self, program: str, request: object, on_event: OnEvent, *, inherited: Sequence[int] = ()
    ) -> Any:
        """Give *request* to the module *program* and return its answer.

        It has the descriptors *inherited* as long as it runs, however envd ends.

        Raises:
            ManagerMissingError: the extra `conda` is not installed.
            SettingsInvalidError: the file of credentials is not there, or is none.
            BuildTimedOutError: it took too long, or showed no sign of life for too long.
            BuildInterruptedError: it was killed.
            EnvdError: the program's own.
        """
        check_installed()
        with _memory(json.dumps(request)) as asked, _memory("") as answered:
            descriptors = [asked, answered, *inherited]
            descriptors += [self.held.descriptor] if self.held else []
            finished = child.run(
                [sys.executable, "-I", _path(program), str(asked), str(answered)],
                env=config.passed(_PASSED) | self._variables(),
                cwd=self.settings.root,
                limits=self.limited(),
                on_line=lambda line: on_event(Line(line)),
                pass_fds=descriptors,
                token=self.held.token if self.held else None,
            )
            if finished.ended_by:
                raise self._late() if finished.ended_by == "time" else self._silent()
            return _answer(_text(answered), program, finished)

    def _variables(self) -> dict[str, str]:
        auth_file = self.mirrors.auth_file
        if not auth_file:
            return {}
        # rattler takes one that is not there for an empty one.
        if not os.access(auth_file, os.R_OK):
            message = f"`{auth_file}` (`conda.auth_file`) cannot be read; give another, or none"
            raise SettingsInvalidError(message, setting="conda.auth_file", file=auth_file)
        return {"RATTLER_AUTH_FILE": auth_file}

    def _silent(self) -> BuildTimedOutError:
        seconds = self.settings.build.silence
        message = f"conda packages: nothing moved for {seconds:.0f} s (`build.silence`)"
        return BuildTimedOutError(message)


def check_installed() -> None:
    """See that the extra is there.

    Raises:
        ManagerMissingError: it is not.
    """
    missing = [one for one in ("rattler", "conda_lock") if importlib.util.find_spec(one) is None]
    if missing:
        message = (
            "conda environments need the extra `conda`, which is not installed with envd; "
            "`pip install 'envd-daemon[conda]'` adds it"
        )
        raise ManagerMissingError(message, missing=", ".join(missing))


def _path(program: str) -> str:
    """Return the file of the module *program*: by `-m` all that its package has is imported."""
    found = importlib.util.find_spec(program)
    if found is None or found.origin is None:
        message = f"there is no program `{program}`"
        raise InternalError(message)
    return found.origin


@contextlib.contextmanager
def _memory(text: str) -> Iterator[int]:
    """Yield the descriptor of a file that holds *text*, at its beginning, and lies on no disk."""
    descriptor = os.memfd_create("rattler.json")
    try:
        os.write(descriptor, text.encode())
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _text(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0).decode()


def _answer(text: str, program: str, finished: child.Finished) -> Any:
    if not text and finished.status == -signal.SIGKILL:
        # Somebody did that, or the kernel, which had no memory left.
        message = f"`{program}` was killed"
        raise BuildInterruptedError(message)
    if not text:
        said = " ".join(finished.tail[-_TAIL:])
        message = f"`{program}` ended with status {finished.status} and no answer: {said}"
        raise InternalError(message)
    answer = json.loads(text)
    if "error" in answer:
        raise from_document(answer["error"])
    return answer["done"]
