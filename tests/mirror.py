"""A server of conda channels on this machine, where a test lets go wrong what it wants to."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Self
from urllib.parse import unquote

_STEP_S = 0.05
_LONG_S = 120


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for; `credential` is a token or `user:password`, `""` of a stranger.

    A token stands in the path, as in `/t/TOKEN/channel`, or is a bearer's.
    """

    method: str
    path: str
    credential: str


class _Server(http.server.ThreadingHTTPServer):
    # Whoever comes when five wait already tries again after a second.
    request_queue_size = 128


@dataclass
class Mirror:
    """A server of the channels in a folder: `folder/conda-forge` is at `url/conda-forge`.

    `faults` says what goes wrong, by patterns of paths as in `*/python-3.9*`; the first that
    fits counts. A mirror that was stopped can start again, and is where it was.
    """

    folder: Path
    faults: dict[str, Fault] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    port: int = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Answer from now on."""
        self.stopped = threading.Event()
        handler = type("Handler", (Answer,), {"mirror": self, "stopped": self.stopped})
        self._server = _Server(("127.0.0.1", self.port), handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections, and end the answers that would go on for long."""
        self.stopped.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def asked(self, pattern: str) -> int:
        """Return how often files were asked for whose paths fit *pattern*."""
        got = [one for one in self.requests if one.method == "GET"]
        return sum(fnmatchcase(one.path, pattern) for one in got)


class Answer(http.server.BaseHTTPRequestHandler):
    """The answer to a request for a file, which has the `content`."""

    mirror: Mirror
    stopped: threading.Event
    content: bytes

    def do_GET(self) -> None:
        self.asked = self._asked()
        self.mirror.requests.append(self.asked)
        # Whoever asked may have gone.
        with contextlib.suppress(ConnectionError):
            self._answer(self.asked.path)

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, path: str) -> None:
        file = self.mirror.folder / path.lstrip("/")
        if not file.is_file():
            self.send(404, b"")
            return
        self.content = file.read_bytes()
        faults = list(self.mirror.faults.items())
        next((fault for pattern, fault in faults if fnmatchcase(path, pattern)), serve)(self)

    def send(self, status: int, content: bytes, **headers: str) -> None:
        """Send a whole answer."""
        self.begin(status, len(content), **headers)
        self.write(content)

    def begin(self, status: int, size: int, **headers: str) -> None:
        """Send what stands before a content of *size* bytes."""
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(size)}).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def write(self, content: bytes) -> None:
        """Send a part of the content."""
        if self.command == "GET":
            self.wfile.write(content)

    def _asked(self) -> Request:
        path = unquote(self.path)
        kind, _, credential = self.headers.get("Authorization", "").partition(" ")
        if kind == "Basic":
            credential = base64.b64decode(credential).decode()
        if path.startswith("/t/"):
            _, _, credential, rest = path.split("/", 3)
            path = f"/{rest}"
        return Request(self.command, path, credential)

    def log_message(self, *_: object) -> None:
        pass


Fault = Callable[[Answer], None]


def serve(answer: Answer) -> None:
    """Answer rightly; who has the content already does not get it again."""
    tag = f'"{hashlib.sha256(answer.content).hexdigest()}"'
    if answer.headers.get("If-None-Match") == tag:
        answer.send(304, b"", ETag=tag)
    else:
        answer.send(200, answer.content, ETag=tag)


def refuse(status: int) -> Fault:
    """Answer with *status* and nothing else."""
    return lambda answer: answer.send(status, b"")


def want(credential: str, status: int = 401) -> Fault:
    """Refuse whoever does not give the token or the `user:password`."""

    def fault(answer: Answer) -> None:
        if answer.asked.credential == credential:
            serve(answer)
        else:
            answer.send(status, b"", WWW_Authenticate='Basic realm="channels"')

    return fault


def hang(answer: Answer) -> None:
    """Never answer."""
    answer.stopped.wait(_LONG_S)


def trickle(bytes_per_s: int) -> Fault:
    """Answer slowly."""
    size = max(1, int(bytes_per_s * _STEP_S))

    def fault(answer: Answer) -> None:
        answer.begin(200, len(answer.content))
        for start in range(0, len(answer.content), size):
            answer.write(answer.content[start : start + size])
            if answer.stopped.wait(_STEP_S):
                return

    return fault


def break_off(answer: Answer) -> None:
    """Close the connection midway."""
    answer.begin(200, len(answer.content))
    answer.write(answer.content[: len(answer.content) // 2])


def truncate(answer: Answer) -> None:
    """Send half of the content as if it were all."""
    answer.send(200, answer.content[: len(answer.content) // 2])


def tamper(content: bytes) -> Fault:
    """Send another *content*."""
    return lambda answer: answer.send(200, content)


def first(times: int, fault: Fault) -> Fault:
    """Let only so many answers go wrong."""
    faults = itertools.chain(itertools.repeat(fault, times), itertools.repeat(serve))

    def passing(answer: Answer) -> None:
        next(faults)(answer)

    return passing
