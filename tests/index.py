"""A package index on this machine: dated or not, with a login or without, and it remembers."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import unquote

from packaging import utils


@dataclass(frozen=True)
class File:
    """A file that was uploaded to the index."""

    content: bytes
    uploaded: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass
class Index:
    """An index; `login` is `user:password`, and without `is_dated` no file has a date.

    It does not answer while `gate` is clear. `requests` are the paths asked for and
    `logins` whoever asked, `""` for a stranger, who gets nothing where a login is wanted.
    """

    is_dated: bool = True
    login: str = ""
    requests: list[str] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    files: dict[str, File] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self.gate.set()
        handler = type("Handler", (_Handler,), {"index": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}/simple"

    @property
    def url_with_login(self) -> str:
        return f"http://{self.login}@{self.host}/simple"

    def add(self, path: Path, day: str = "2024-01-01") -> str:
        """Upload the file *path* on *day* and return where it is."""
        uploaded = day if "T" in day else f"{day}T12:00:00.000000Z"
        self.files[path.name] = File(path.read_bytes(), uploaded)
        return f"http://{self.host}/files/{path.name}"

    def page(self, name: str) -> tuple[str, str] | None:
        """Return the page of a distribution, and of what kind it is."""
        files = {key: one for key, one in self.files.items() if _distribution(key) == name}
        if not files:
            return None
        if not self.is_dated:
            links = [f'<a href="../../files/{key}#sha256={one.sha256}">{key}</a>'
                     for key, one in files.items()]  # fmt: skip
            return f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>", "text/html"
        listed = [
            {"filename": key, "url": f"../../files/{key}", "upload-time": one.uploaded,
             "hashes": {"sha256": one.sha256}, "size": len(one.content)}
            for key, one in files.items()
        ]  # fmt: skip
        meta = {"meta": {"api-version": "1.1"}, "name": name, "files": listed, "versions": []}
        return json.dumps(meta), "application/vnd.pypi.simple.v1+json"


def _distribution(filename: str) -> str:
    if filename.endswith(".whl"):
        return utils.parse_wheel_filename(filename)[0]
    name, _, _ = filename.rpartition("-")
    return utils.canonicalize_name(name)


class _Handler(http.server.BaseHTTPRequestHandler):
    index: Index

    def do_GET(self) -> None:
        self.index.requests.append(self.path)
        login = re.sub("^Basic ", "", self.headers.get("Authorization", ""))
        self.index.logins.append(base64.b64decode(login).decode())
        self.index.gate.wait(60)
        if self.index.login and self.index.logins[-1] != self.index.login:
            self._answer(401, b"", "text/plain")
            return
        *_, folder, name = unquote(self.path.partition("?")[0]).strip("/").split("/")
        if folder == "files" and (file := self.index.files.get(name)):
            self._answer(200, file.content, "application/octet-stream")
        elif folder == "simple" and (page := self.index.page(name)):
            self._answer(200, page[0].encode(), page[1])
        else:
            self._answer(404, b"", "text/plain")

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="packages"')
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
