"""Where uv finds the packages of one spec: its indexes, with the credentials of the settings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from envd.config import Index
from envd.spec import Indexes
from envd.spec.urls import canonical_host, has_credentials, without_credentials

_PYPI = "https://pypi.org/simple"


@dataclass(frozen=True, slots=True)
class Sources:
    """The indexes of a spec, the directories `copied` from its model, and uv's `config` file."""

    indexes: Indexes
    copied: tuple[Path, ...] = ()
    config: Path | None = None

    def variables(self, settings: Index) -> dict[str, str]:
        """Return uv's variables: credentials must not show in the arguments of a process."""
        links = [*_with_credentials(self.indexes.find_links, settings.find_links),
                 *map(str, self.copied)]  # fmt: skip
        found = {"UV_INDEX_STRATEGY": _strategy(self.indexes)}
        if links:
            # A comma in a path would end it.
            found["UV_FIND_LINKS"] = ",".join(
                one if "://" in one else Path(one).as_uri() for one in links
            )
        *others, default = [f"{name}={url}" for name, url in self._named()]
        if self.config is None and self.indexes.urls:
            found |= {"UV_DEFAULT_INDEX": default, "UV_INDEX": " ".join(others)}
        for name, url in self._named():
            found |= _credentials(name, url, settings.urls)
        return found

    def write_config(self, path: Path, exempt: Collection[str]) -> None:
        """Write the indexes into the uv configuration *path*, *exempt* ones without dates."""
        tables = []
        for name, url in self._named():
            lines = ["[[index]]", f'name = "{name}"', f"url = {json.dumps(url)}"]
            if url in exempt:
                lines.append("exclude-newer = false")
            tables.append(lines)
        tables[-1].append("default = true")
        preview = 'preview-features = ["index-exclude-newer"]\n'
        path.write_text(preview + "\n".join(line for lines in tables for line in lines))

    @property
    def urls(self) -> list[str]:
        """The indexes, PyPI where none is named."""
        return [_unnamed(url) for url in self.indexes.urls or (_PYPI,)]

    def _named(self) -> list[tuple[str, str]]:
        return [(f"envd{number}", url) for number, url in enumerate(self.urls)]


def redactor(settings: Index) -> Callable[[str], str]:
    """Return what takes the credentials of *settings*, and of any URL, out of a line."""
    secrets = set()
    for url in (*settings.urls, *settings.find_links):
        if found := re.search(r"://([^/?#]*)@", url):
            password = found[1].partition(":")[2] or found[1]
            secrets |= {password, unquote(password)}

    def redact(line: str) -> str:
        line = without_credentials(line)
        for secret in secrets:
            line = line.replace(secret, "****") if secret else line
        return line

    return redact


def _strategy(indexes: Indexes) -> str:
    return "unsafe-best-match" if indexes.best_match else "first-index"


def _with_credentials(links: tuple[str, ...], settings: tuple[str, ...]) -> list[str]:
    """Return *links* as the settings have them; those of the model are `copied` instead."""
    given = {without_credentials(one): one for one in settings}
    return [given.get(one, one) for one in links if not one.startswith("./")]


def _credentials(name: str, url: str, settings: tuple[str, ...]) -> dict[str, str]:
    """Return the credentials that the settings have for *url*, or for another of its host."""
    known = [_unnamed(one) for one in settings if has_credentials(one)]
    exact = [one for one in known if without_credentials(one).rstrip("/") == url.rstrip("/")]
    same = [one for one in known if _origin(one) == _origin(url)]
    if not (exact or same):
        return {}
    parts = urlsplit((exact or same)[0])
    prefix = f"UV_INDEX_{name.upper()}"
    return {
        f"{prefix}_USERNAME": unquote(parts.username or ""),
        f"{prefix}_PASSWORD": unquote(parts.password or ""),
    }


def _unnamed(url: str) -> str:
    """Return *url* without a name: uv takes `name=https://...` as well, and envd names its own."""
    return re.sub(r"^[\w.-]+=(?=\w+://)", "", url)


def _origin(url: str) -> str:
    found = re.match(r"[^:/]+://[^/?#]*", canonical_host(without_credentials(url)))
    return found[0] if found else url
