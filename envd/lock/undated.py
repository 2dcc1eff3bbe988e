"""Exempts the indexes that do not date their files from being asked as of a day."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

from packaging import utils

from envd.child import Finished
from envd.events import Note
from envd.lock.sources import Sources
from envd.lock.uv import Uv

# At the beginning of a line: what a build says is indented.
_UNDATED = re.compile(r"warning: `([^`\s]+)` is missing an upload date")


class Undated:
    """The sources of one spec, and which of its indexes are known to have no dates."""

    def __init__(
        self, uv: Uv, interpreter: Path, sources: Sources, moment: str, work: Path
    ) -> None:
        """Ask for what was uploaded before *moment*, and write into the directory *work*."""
        self.notes: tuple[Note, ...] = ()
        self._uv = uv
        self._interpreter = interpreter
        self._sources = sources
        self._moment = moment
        self._work = work
        self._lock = threading.Lock()

    def run(self, ask: Callable[[Sources], Finished]) -> Finished:
        """Let *ask* run uv, and again whenever an index shows that it has no dates."""
        sources = self._sources
        finished = ask(sources)
        while self._have_changed(sources, finished):
            sources = self._sources
            finished = ask(sources)
        return finished

    def _have_changed(self, sources: Sources, finished: Finished) -> bool:
        """Whether there is more than in *sources* after what uv said: exempt indexes."""
        files = _undated_files(finished)
        with self._lock:
            if files and self._sources is sources:
                self._exempt_indexes_of(files)
            return bool(files) and self._sources is not sources

    def _exempt_indexes_of(self, files: Collection[str]) -> None:
        urls = [url for url in self._sources.urls if url not in self._sources.exempt]
        undated = urls if len(urls) == 1 else [url for url in urls if self._is_undated(url, files)]
        if not undated:
            return
        for url in undated:
            message = f"the index `{url}` does not date its files; all of them are considered"
            self.notes = (*self.notes, Note("INDEX_UNDATED", message, url))
        exempt = self._sources.exempt | set(undated)
        self._sources = replace(self._sources, exempt=exempt)

    def _is_undated(self, url: str, files: Collection[str]) -> bool:
        """Ask the index *url* alone for the distributions of *files*."""
        indexes = replace(self._sources.indexes, urls=(url,), find_links=(), no_index=False)
        for name in sorted(set(_distributions(files))):
            asked = self._work / "asked.txt"
            asked.write_text(f"{name}\n")
            finished = self._uv.run(
                [
                    "pip", "compile", str(asked), "--no-deps",
                    "--python", str(self._interpreter), "--exclude-newer", self._moment,
                ],
                on_line=lambda _: None,
                sources=Sources(indexes),
            )  # fmt: skip
            if _undated_files(finished):
                return True
        return False


def _undated_files(finished: Finished) -> set[str]:
    return {found[1] for line in finished.tail if (found := _UNDATED.match(line))}


def _distributions(files: Collection[str]) -> Iterator[str]:
    for file in files:
        try:
            is_wheel = file.endswith(".whl")
            parse = utils.parse_wheel_filename if is_wheel else utils.parse_sdist_filename
            yield parse(file)[0]
        except (utils.InvalidWheelFilename, utils.InvalidSdistFilename):
            continue
