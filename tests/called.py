"""envctl called in this process, where what it does is tested and not how it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from unittest.mock import patch

import pytest
from click.testing import CliRunner

from envd.cli.main import main
from tests.conftest import Envctl


class Called(Envctl):
    """The command, on one root, without a process of its own."""

    def __call__(
        self, *arguments: object, stdin: str = "", **changed: str
    ) -> subprocess.CompletedProcess[str]:
        argv = self.argv(*arguments)
        numbers = (signal.SIGTERM, signal.SIGHUP)
        handlers = [signal.getsignal(number) for number in numbers]
        try:
            with (
                patch.dict(os.environ, self.env | changed, clear=True),
                patch.object(sys, "argv", argv),
                CliRunner().isolation(stdin) as (stdout, stderr, _),
                pytest.raises(SystemExit) as ended,
            ):
                main()
        finally:
            for number, handler in zip(numbers, handlers, strict=True):
                signal.signal(number, handler)
        said = [stream.getvalue().decode() for stream in (stdout, stderr)]
        return subprocess.CompletedProcess(argv, ended.value.code, *said)
