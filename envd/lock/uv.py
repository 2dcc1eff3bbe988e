"""Calls uv: with no configuration but envd's, and its failures in envd's terms."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from uv import find_uv_bin

from envd import child, config, secrets
from envd.errors import (
    BuildTimedOutError,
    CacheFullError,
    EnvdError,
    IndexUnreachableError,
    LimitReachedError,
)
from envd.lock.sources import Sources
from envd.lock.tool import Tool
from envd.sandbox.bounds import Room, interpreter, local_path, programs

# Proxies, certificates and credentials of the machine; nothing else of the daemon's
# variables reaches a child (`${AWS_SECRET}` in an index URL arrived at a stranger's server).
PASSED = (
    "PATH", "HOME", "LANG", "NETRC", "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY",
    "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
)  # fmt: skip

_MARKS = " \t\u00d7\u2570\u2500\u25b6\u2502\u251c"
_ADVICE = "Consider using `exclude-newer-package` to override the cutoff for this package."
_LONGEST = 2000
# What a pipe holds.
_PIPE = 1 << 16
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded|\(os error 28\)")
_SHORTAGE = re.compile(r"\(os error (12|23|24)\)")
_BUILD_OUTPUT = re.compile(r"build backend returned an error|\[std(err|out)\]")
_UNREACHABLE = re.compile(
    r"error sending request|dns error|failed to lookup address|Connection refused|"
    r"connection closed|operation timed out|HTTP status server error|tunnel error|"
    r"[Nn]etwork connectivity is disabled|network was disabled|not found in the cache|"
    r"Could not connect|Network is unreachable|lack of valid authentication credentials|"
    # git's, of a repository
    r"Could not resolve host|Failed to connect to|Couldn't connect to server"
)


@dataclass(frozen=True, slots=True)
class Uv(Tool):
    """uv as one root uses it."""

    @property
    def cache(self) -> Path:
        """Uv's own cache, under the root so that hardlinks work and gc can count it."""
        return self.settings.root / "cache" / "uv"

    @property
    def pythons(self) -> Path:
        """Where uv puts the Pythons it downloads."""
        return self.settings.root / "pythons"

    def run(
        self,
        arguments: Sequence[str],
        *,
        on_line: Callable[[str], None],
        offline: bool = False,
        may_download_python: bool = False,
        sources: Sources | None = None,
        cache: Path | None = None,
        links: bool = False,
    ) -> child.Finished:
        """Run `uv` *arguments* to their end, with packages of *sources*; see `Room` for *links*.

        Raises:
            BuildTimedOutError: it took too long, or showed no sign of life for too long.
            CacheFullError: the disk is full.
            IndexUnreachableError: an index did not answer, or may not be asked.
        """
        redact = self._redactor()
        # A Python that is downloaded is unpacked in one place, and runs in none.
        links = links or may_download_python
        written = [cache or self.cache, *([self.pythons] if may_download_python else [])]
        with _to_be_read(
            sources.configuration(self.settings.index) if sources else ""
        ) as configuration:
            finished = self.start(
                self._argv(arguments, sources, configuration, offline=offline),
                replace(self._room(arguments, written, offline=offline), links=links),
                env=self._environment(written[0], may_download=may_download_python),
                cwd=self._empty(),
                on_line=lambda line: on_line(redact(line)),
                given=[configuration],
            )
        finished = replace(finished, tail=tuple(map(redact, finished.tail)))
        if finished.status != 0 and (error := self._machine_fault(finished)):
            raise error
        return finished

    def _redactor(self) -> Callable[[str], str]:
        index = self.settings.index
        known = secrets.of((*index.urls, *index.find_links))
        return lambda line: secrets.without(secrets.without_login(line), known)

    def _argv(
        self,
        arguments: Sequence[str],
        sources: Sources | None,
        configuration: int,
        *,
        offline: bool,
    ) -> list[str]:
        argv = [find_uv_bin(), *arguments, "--system-certs"]
        argv += ["--config-file", f"/proc/self/fd/{configuration}"] if sources else ["--no-config"]
        argv += ["--no-index"] if sources and sources.indexes.no_index else []
        # A source tree may say for itself where its packages come from, past every policy.
        argv += ["--no-sources"] if sources else []
        return [*argv, "--offline"] if offline or self.settings.index.offline else argv

    def _room(self, arguments: Sequence[str], written: Sequence[Path], *, offline: bool) -> Room:
        """Return what uv has to see of this machine, to do what *arguments* say."""
        for one in written:
            one.mkdir(parents=True, exist_ok=True)
        pythons = [Path(two) for one, two in itertools.pairwise(arguments) if one == "--python"]
        needed = [one for python in pythons for one in interpreter(python, self.settings)]
        root, index = self.settings.root, self.settings.index
        own = [Path(find_uv_bin()), *map(root.joinpath, ("empty", "wheels", "pythons"))]
        listed = [*index.urls, *index.find_links, *self.settings.security.sources]
        local = [found for one in listed if (found := local_path(one))]
        variables = config.passed(("NETRC", "SSL_CERT_FILE", "SSL_CERT_DIR"))
        machine = [*map(Path, variables.values()), *programs()]
        is_offline = offline or index.offline
        return Room((*own, *needed, *local, *machine), tuple(written), network=not is_offline)

    def _empty(self) -> Path:
        # A pyproject.toml in the current directory redirects uv's index.
        empty = self.settings.root / "empty"
        empty.mkdir(parents=True, exist_ok=True)
        return empty

    def _environment(self, cache: Path, *, may_download: bool) -> dict[str, str]:
        return config.passed(PASSED) | {
            "GIT_TERMINAL_PROMPT": "0",
            # What a build writes into a wheel must not depend on when it runs.
            "SOURCE_DATE_EPOCH": "315532800",
            "UV_CACHE_DIR": str(cache),
            # Packages may bring the same file (mlflow and mlflow-skinny do): which of them
            # wins must not depend on which thread is faster.
            "UV_CONCURRENT_INSTALLS": "1",
            "UV_KEYRING_PROVIDER": "subprocess" if self.settings.index.keyring else "disabled",
            "UV_LINK_MODE": self.settings.build.link_mode,
            "UV_NO_PROGRESS": "1",
            "UV_PYTHON_INSTALL_DIR": str(self.pythons),
            "UV_PYTHON_DOWNLOADS": "automatic" if may_download else "never",
        }

    def _machine_fault(self, finished: child.Finished) -> EnvdError | None:
        # What a package's own build says is no word of uv's on the index or the disk.
        ours = itertools.takewhile(lambda line: not _BUILD_OUTPUT.search(line), finished.tail)
        # uv wraps its lines.
        text = re.sub(r"\s+", " ", " ".join(line.strip(_MARKS) for line in ours))
        if finished.ended_by:
            return self._late() if finished.ended_by == "time" else self._silent()
        if _DISK_FULL.search(text):
            message = f"the disk of `{self.settings.root}` is full; free some of it"
            return CacheFullError(message, root=self.settings.root)
        if found := _SHORTAGE.search(text):
            return LimitReachedError(f"uv may not have more: {text[-1000:]}; raise its limits")
        if found := _UNREACHABLE.search(text):
            line = next((one for one in finished.tail if found[0] in one), text).strip()[-1000:]
            what = "a package index cannot be reached"
            if self.settings.index.offline:
                what = "envd is offline (`index.offline`), and something is not cached"
            return IndexUnreachableError(f"{what}: {line}", detail=line)
        return None

    def _silent(self) -> BuildTimedOutError:
        seconds = self.settings.build.silence
        message = f"uv said nothing and moved no data for {seconds:.0f} s (`build.silence`)"
        return BuildTimedOutError(message)


@contextlib.contextmanager
def _to_be_read(text: str) -> Iterator[int]:
    """Yield the descriptor of a pipe that holds *text*: who reads it leaves nothing of it.

    What uv starts inherits the descriptor, and the text has the credentials of indexes.
    """
    reading, writing = os.pipe()
    try:
        content = text.encode()
        try:
            if len(content) > _PIPE:
                fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, len(content))
            os.write(writing, content)
        finally:
            os.close(writing)
        yield reading
    finally:
        os.close(reading)


def explanation(finished: child.Finished) -> str:
    """Return what uv said of its failure, without the marks it draws, as one sentence."""
    text = re.sub(r"\s+", " ", " ".join(line.strip(_MARKS) for line in finished.tail)).strip()
    # An option of uv's that no setting of envd's gives.
    text = text.replace(_ADVICE, "").strip()
    return text if len(text) <= _LONGEST else "... " + text[-_LONGEST:].partition(" ")[2]
