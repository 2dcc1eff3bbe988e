"""Drives a worker or a template as the daemon does: over real sockets, alone."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from envd.run.envd_worker import protocol
from envd.run.envd_worker.inbox import Inbox, Request

PROGRAM = str(Path(protocol.__file__).parent)
JSON = {"content_type": "application/json", "params": None}
_LIMIT_S = 60


class Said(Exception):  # noqa: N818
    """A worker refused."""

    def __init__(self, head: Mapping[str, Any]) -> None:
        super().__init__(head["message"])
        self.reason, self.head = head["reason"], head


@dataclass
class Talk:
    """One end of the socket of a worker."""

    connection: socket.socket
    inbox: Inbox = field(init=False)
    count: int = 0

    def __post_init__(self) -> None:
        self.inbox = Inbox(self.connection)

    def send(self, *frames: tuple[int, dict[str, Any], bytes]) -> list[int]:
        """Send requests at once, each a kind, a head and a payload; return their ids."""
        first = self.count + 1
        self.count += len(frames)
        protocol.send(
            self.connection,
            [(first + place, *frame) for place, frame in enumerate(frames)],
        )
        return list(range(first, self.count + 1))

    def hear(self) -> Request:
        """Return the next frame."""
        if self.inbox.next():
            # It may have died since it said that.
            return self.inbox.take_next()
        is_there = select.select([self.connection], [], [], _LIMIT_S)[0]
        assert is_there, "the worker says nothing"
        frame = self.inbox.take()
        assert frame is not None, "the worker is gone"
        return frame

    def ask(self, kind: int, head: dict[str, Any], payload: bytes = b"") -> Request:
        """Return the answer to one request."""
        (number,) = self.send((kind, head, payload))
        frame = self.hear()
        assert frame.number == number
        if frame.kind == protocol.FAILED:
            raise Said(frame.head)
        assert frame.kind == protocol.DONE
        return frame

    def load(self, model: Path, **more: Any) -> dict[str, Any]:
        return self.ask(protocol.LOAD, load_head(model, **more)).head

    def predict(self, document: object) -> Any:
        answer = self.ask(protocol.PREDICT, JSON, json.dumps(document).encode())
        return json.loads(answer.payload)["predictions"]


def load_head(model: Path, **more: Any) -> dict[str, Any]:
    """Return the head that loads *model*, whose own loader is the module `loader`."""
    code = model / "code"
    given = {
        "model": str(model),
        "code": str(code) if code.is_dir() else None,
        "loader_module": "loader",
        "data": str(model),
        "max_payload": 64 << 20,
    }
    return given | more


def model(
    path: Path, predict: str = "return data", top: str = "", methods: str = "", **modules: str
) -> Path:
    """Write a model of its own loader: *top* is run to load it, *predict* to predict.

    It has more *methods*.
    """
    (path / "code").mkdir(parents=True)
    (path / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: loader\n    code: code\n"
    )
    body = textwrap.indent(predict, " " * 8) + "\n\n" + textwrap.indent(methods, " " * 4)
    (path / "code" / "loader.py").write_text(
        f"import os, sys\n{top}\n\nclass Model:\n    def predict(self, data):\n{body}\n\n\n"
        "def _load_pyfunc(path):\n    return Model()\n"
    )
    for name, text in modules.items():
        (path / "code" / f"{name}.py").write_text(text)
    return path


def small_environment(
    path: Path,
    python: Path = Path(sys._base_executable),
    packages: Sequence[str] = (),
    **modules: str,
) -> Path:
    """Make a virtualenv of nothing but *modules*, in a millisecond; return its Python.

    *packages* are folders among those of the tests' own Python.
    """
    minor = subprocess.run(
        [python, "-I", "-S", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    folder = path / "lib" / f"python{minor}" / "site-packages"
    folder.mkdir(parents=True)
    (path / "bin").mkdir()
    (path / "bin" / "python").symlink_to(python.resolve())
    (path / "pyvenv.cfg").write_text(f"home = {python.resolve().parent}\n")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    for name in packages:
        (folder / name).symlink_to(Path(sysconfig.get_path("purelib")) / name)
    return path / "bin" / "python"


@contextlib.contextmanager
def worker(
    python: Path | str = sys.executable,
    *,
    cwd: Path,
    document: dict[str, Any] | None = None,
    given: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> Iterator[tuple[Talk, subprocess.Popen[bytes]]]:
    """A fresh worker, as the spawner starts one."""
    ours, theirs = socket.socketpair()
    arguments = [str(theirs.fileno())]
    if document is not None:
        arguments += [json.dumps(document), *map(str, given)]
    with theirs, contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("ab")) if log else None
        process = subprocess.Popen(
            [python, "-I", "-B", PROGRAM, "serve", *arguments],
            pass_fds=[theirs.fileno(), *given],
            env=dict(env or {}),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        with ours:
            yield Talk(ours), process
        process.wait(timeout=_LIMIT_S)
    finally:
        process.kill()
        process.wait()


class Template:
    """A template, as the spawner starts one, and the daemon's end of its socket."""

    def __init__(
        self,
        modules: Sequence[str],
        *,
        cwd: Path,
        python: Path | str = sys.executable,
        env: Mapping[str, str] | None = None,
        given: Sequence[int] = (),
        **document: Any,
    ) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(_LIMIT_S)
        self.cwd, self.log = cwd, cwd / "template.log"
        (cwd / "template.json").write_text(json.dumps({"modules": list(modules)} | document))
        with theirs, self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(python, "-I", "-B", PROGRAM, "template", str(theirs.fileno())),
                    str(cwd / "template.json"),
                ],
                pass_fds=[theirs.fileno(), *given],
                env=dict(env or {}),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.count, self.pid = 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.control.close()
        self.process.wait(_LIMIT_S)

    def hear(self) -> dict[str, Any]:
        """Return the next thing it says."""
        text = self.control.recv(1 << 20)
        assert text, f"the template is gone: {self.log.read_text()}"
        return json.loads(text)

    def says_nothing(self, for_s: float = 0.05) -> bool:
        return not select.select([self.control], [], [], for_s)[0]

    def say(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        socket.send_fds(self.control, [json.dumps(message).encode()], list(descriptors))

    def ready(self) -> dict[str, Any]:
        found = self.hear()
        assert found.get("ready"), found
        return found

    def order(
        self, theirs: socket.socket, descriptors: Sequence[int] = (), **more: Any
    ) -> dict[str, Any]:
        """Ask for a worker and return what is said of it."""
        self.count += 1
        message = {
            "start": self.count,
            "log": str(self.cwd / "worker.log"),
            "env": {"HOME": str(self.cwd)},
            "cwd": str(self.cwd),
            "given": 1 + len(descriptors),
        }
        self.say(message | more, [theirs.fileno(), *descriptors])
        return self.hear()

    @contextlib.contextmanager
    def worker(self, descriptors: Sequence[int] = (), **more: Any) -> Iterator[tuple[Talk, int]]:
        """A worker that was forked, and the pid the template knows it by."""
        ours, theirs = socket.socketpair()
        with theirs:
            said = self.order(theirs, descriptors, **more)
        assert said.get("started") == self.count, said
        with ours:
            yield Talk(ours), said["pid"]

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
