"""Wheels that envd makes and keeps: of source archives, repositories, and models' own packages.

Below the root, `wheels/<sha256>/<file>.whl`, and `wheels/made/<recipe>.json` says which
wheel a recipe made: a source and all that decides what its build gives. Each is built
once, with build requirements of the same month as everything else.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tomllib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from packaging import utils
from packaging.version import Version

from envd import durable, held
from envd.child import Finished
from envd.errors import InstallFailedError
from envd.events import Line, OnEvent, Stage
from envd.lock import metadata
from envd.lock.lock import Lock
from envd.lock.sources import Sources
from envd.lock.undated import Undated
from envd.lock.uv import Uv, explanation
from envd.model.texts import shown
from envd.scratch import scratch
from envd.spec import Python


@dataclass(frozen=True, slots=True)
class Kept:
    """A wheel that is kept, and what it was made from."""

    name: str
    version: str
    sha256: str
    filename: str
    made_from: str


@dataclass(frozen=True, slots=True)
class Builder:
    """How the wheels of one lock are built: with which Python, packages and limits.

    `options` are uv's on dates and build constraints; `rules` say what they mean, and
    where build requirements come from.
    """

    uv: Uv
    interpreter: Path
    python: Python
    undated: Undated
    options: tuple[str, ...]
    rules: tuple[str, ...]
    on_event: OnEvent


@dataclass(frozen=True, slots=True)
class Source:
    """What a wheel is built from: the requirement `line` that uv is given, and how to call it.

    `identity` names it by its content; it is empty for what may be another thing
    tomorrow, a branch for one, whose `made_from` may hold `{commit}`.
    """

    title: str
    line: str
    identity: tuple[str, ...]
    made_from: str
    options: tuple[str, ...] = ()


class Wheels:
    """The wheels kept below one root."""

    def __init__(self, root: Path) -> None:
        """Keep them below *root*."""
        self._root = root
        self._folder = root / "wheels"

    def path(self, sha256: str, filename: str) -> Path:
        """Return where the wheel *filename* lies, or would."""
        return self._folder / sha256 / filename

    def has_all(self, lock: Lock) -> bool:
        """Whether every wheel is still there that *lock* needs from here."""
        return all(
            self.path(one.sha256, one.filename).exists()
            for one in lock.packages
            if one.origin == "kept"
        )

    def keep(self, wheel: Path, made_from: str) -> Kept:
        """Keep the file *wheel*.

        Raises:
            SolveFailedError: it depends on what is no package of an index.
            InstallFailedError: it is no wheel.
        """
        metadata.check_wheel(wheel, made_from)
        content = wheel.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if not (found := _distribution(wheel.name)):
            message = f"`{made_from}` is not a wheel: `{shown(wheel.name)}` is not the name of one"
            raise InstallFailedError(message, package=made_from)
        name, version = found
        target = self.path(sha256, wheel.name)
        if not target.exists():
            # A lock names it for good: half a wheel would never be mended.
            durable.write_bytes(target, content)
        return Kept(name, str(version), sha256, wheel.name, made_from)

    def built(self, source: Source, builder: Builder) -> Kept:
        """Return the wheel of *source*, building it if that was never done.

        Raises:
            InstallFailedError: it cannot be built.
            IndexUnreachableError: it or its build requirements cannot be had.
        """
        recipe = [source.identity or source.line, builder.python.document(), builder.rules]
        key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
        record = self._folder / "made" / f"{key}.json"
        with held.exclusively(
            self._root / "held" / f"wheel-{key}",
            lambda _: builder.uv.check_time(),
            within=builder.uv.held,
        ) as holder:
            if source.identity and (found := self._read(record)):
                # Another model may have brought the same under another name.
                return replace(found, made_from=source.made_from)
            kept = self._build(source, replace(builder, uv=builder.uv.within(holder)))
            if source.identity:
                durable.write_json(record, asdict(kept))
            return kept

    def check_remote(self, url: str, builder: Builder) -> None:
        """See that the wheel at *url* depends on packages of indexes only.

        Raises:
            SolveFailedError: it does not.
            InstallFailedError: it is no wheel.
            IndexUnreachableError: it cannot be had.
        """
        with scratch(self._root, "wheel") as work:
            finished = builder.undated.run(
                lambda sources: builder.uv.in_rooms(work).run(
                    [
                        "pip", "install", "--python", str(builder.interpreter), "--no-deps",
                        "--no-build", "--target", str(work / "target"), url,
                    ],
                    on_line=lambda text: builder.on_event(Line(text)),
                    sources=sources,
                )
            )  # fmt: skip
            if finished.status != 0:
                raise _failure(url, finished)
            for found in (work / "target").glob("*.dist-info/METADATA"):
                metadata.check(found.read_text(errors="replace"), url)

    def sha256(self, url: str, builder: Builder) -> str:
        """Return the SHA-256 of the source archive at *url*.

        Raises:
            InstallFailedError: it is none.
            IndexUnreachableError: it, or what says its name, cannot be had.
        """
        with scratch(self._root, "wheel") as work:
            (work / "source.txt").write_text(f"{url}\n")
            output = work / "pylock.toml"
            finished = builder.undated.run(
                lambda sources: builder.uv.in_rooms(work).run(
                    [
                        "pip", "compile", "--python", str(builder.interpreter), "--no-deps",
                        "--format", "pylock.toml", "--output-file", str(output),
                        *builder.options, str(work / "source.txt"),
                    ],
                    on_line=lambda _: None,
                    sources=sources,
                )
            )  # fmt: skip
            if finished.status != 0:
                raise _failure(url, finished)
            [entry] = tomllib.loads(output.read_text())["packages"]
            return str(entry["archive"]["hashes"]["sha256"])

    def _read(self, record: Path) -> Kept | None:
        try:
            found = Kept(**json.loads(record.read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return found if self.path(found.sha256, found.filename).exists() else None

    def _build(self, source: Source, builder: Builder) -> Kept:
        builder.on_event(Stage("building", f"building a wheel of {source.title}"))
        with scratch(self._root, "wheel") as work:
            finished = builder.undated.run(
                lambda sources: self._install(source, builder, sources, work)
            )
            if finished.status != 0:
                raise _failure(source.title, finished)
            return self._kept(work, source.made_from)

    def _install(self, source: Source, builder: Builder, sources: Sources, work: Path) -> Finished:
        """Install *source* below *work*, anew: of a try before, the wheel would stay as well."""
        for name in ("target", "cache"):
            shutil.rmtree(work / name, ignore_errors=True)
        asked = work / "source.txt"
        asked.write_text(f"{source.line}\n")
        return builder.uv.in_rooms(work).run(
            [
                "pip", "install", "--python", str(builder.interpreter), "--no-deps",
                "--target", str(work / "target"), *builder.options,
                "--requirement", str(asked), *source.options,
            ],
            on_line=lambda text: builder.on_event(Line(text)),
            sources=sources,
            # uv keeps the wheel in its cache; in one of its own there is no other of the name.
            cache=work / "cache",
        )  # fmt: skip

    def _kept(self, work: Path, made_from: str) -> Kept:
        """Keep the wheel that was installed, which may have brought the metadata of others."""
        wheels = {
            _distribution(one.name): one for one in (work / "cache").glob("sdists-*/**/*.whl")
        }
        found = [
            (wheel, info)
            for info in sorted((work / "target").glob("*.dist-info"))
            if (known := _distribution(f"{info.stem}-py3-none-any.whl"))
            and (wheel := wheels.get(known))
        ]
        if len(found) != 1:
            names = ", ".join(shown(wheel.name) for wheel, _ in found) or "there is none"
            message = f"`{made_from}` was built, and which wheel is its own cannot be told: {names}"
            raise InstallFailedError(message, package=made_from)
        [(wheel, info)] = found
        if made_from.startswith("git+"):
            direct = json.loads((info / "direct_url.json").read_text())
            made_from = made_from.replace("{commit}", direct["vcs_info"]["commit_id"])
        return self.keep(wheel, made_from)


def _distribution(filename: str) -> tuple[str, Version] | None:
    """Return the name and the version of the wheel that is called *filename*, None for no wheel."""
    try:
        return utils.parse_wheel_filename(filename)[:2]
    except utils.InvalidWheelFilename:
        return None


def _failure(title: str, finished: Finished) -> InstallFailedError:
    message = f"`{title}` could not be built. {explanation(finished)}"
    return InstallFailedError(message, package=title)
