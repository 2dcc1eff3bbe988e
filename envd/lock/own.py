"""What comes from no index: made a wheel, kept, and locked by its hash like everything else."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

from envd.errors import SolveFailedError
from envd.lock.artifacts import Artifact
from envd.lock.lock import Package
from envd.lock.sources import stripped
from envd.lock.wheels import Builder, Kept, Source, Wheels
from envd.spec import Indexes, Requirement, local
from envd.spec.place import Place
from envd.spec.policy import Policy

_REPOSITORY = re.compile(r"(?P<url>git\+[a-z]+://[^/]*/[^@#]*)(?:@(?P<ref>[^#]+))?(?P<rest>#.*)?")
_REMOTE = ("https://", "http://", "file://")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class OwnPackages:
    """The packages of one model that come from URLs, repositories and the model itself."""

    def __init__(self, model: Path, wheels: Wheels, policy: Policy, work: Path) -> None:
        """Copy what lies in *model* into the directory *work*."""
        self._model = model
        self._wheels = wheels
        self._policy = policy
        self._work = work
        self._links: dict[Path, str] = {}
        self._kept: dict[str, Kept] = {}

    def copied_links(self, indexes: Indexes) -> tuple[Path, ...]:
        """Copy the directories of packages that the model names with `--find-links`."""
        for link in indexes.find_links:
            if link.startswith("./"):
                path, _, sha256 = link.partition("#sha256=")
                target = self._work / "links" / sha256
                local.copy_packages(Place(self._model, path, 1), path, sha256, target)
                self._links[target] = path
        return tuple(self._links)

    def line(self, one: Requirement, builder: Builder) -> str:
        """Return the line that asks for *one*, the wheel of which is made and kept first."""
        head, _, marker = one.text.partition("; ")
        extras = re.search(r"\[.*\]", head)
        if one.source.startswith(_REMOTE) and _is_wheel(one.source):
            url = f"{one.source}#{_hash(one)}" if _hash(one) else one.source
            name = one.name
            self._wheels.check_remote(url, builder)
        else:
            kept = self._made(one, builder)
            self._kept[kept.sha256] = kept
            url, name = self._wheels.path(kept.sha256, kept.filename).as_uri(), kept.name
        return f"{name}{extras[0] if extras else ''} @ {url}" + (f" ; {marker}" if marker else "")

    def package(self, artifact: Artifact, builder: Builder, *, is_direct: bool) -> Package:
        """Return the locked package that *artifact* is, made a wheel if it is none."""
        if kept := self._kept.get(artifact.sha256):
            is_remote = kept.made_from.startswith(_REMOTE)
            return _package(artifact.name, kept, url=kept.made_from if is_remote else "")
        copied = Path(unquote(urlsplit(artifact.url).path))
        link = self._links.get(copied.parent)
        bare = stripped(artifact.url, builder.uv.settings.index)
        place = f"{link}/{copied.name}" if link else bare
        if not artifact.is_wheel:
            return _package(artifact.name, self._built(artifact, place, builder))
        if link:
            return _package(artifact.name, self._wheels.keep(copied, place))
        return Package(
            artifact.name,
            artifact.version,
            artifact.sha256,
            artifact.filename,
            place,
            "url" if is_direct else "index",
        )

    def _made(self, one: Requirement, builder: Builder) -> Kept:
        if one.source.startswith("./"):
            return self._from_model(one, builder)
        self._policy.built(one.name or one.source, one.source)
        found = _REPOSITORY.fullmatch(one.source)
        if found is None:
            digest = _hash(one) or f"sha256={self._wheels.sha256(one.source, builder)}"
            url, _, subdirectory = one.source.partition("#")
            line = f"{url}#{digest}" + (f"&{subdirectory}" if subdirectory else "")
            return self._wheels.built(Source(one.source, line, ("archive", line), line), builder)
        is_fixed = _COMMIT.fullmatch(found["ref"] or "") is not None
        identity = ("git", one.source) if is_fixed else ()
        commit = found["ref"] if is_fixed else "{commit}"
        made_from = f"{found['url']}@{commit}{found['rest'] or ''}"
        return self._wheels.built(Source(one.source, one.source, identity, made_from), builder)

    def _from_model(self, one: Requirement, builder: Builder) -> Kept:
        sha256 = one.hashes[0].removeprefix("sha256:")
        folder = self._work / "own" / sha256
        # A build may have left files in the tree, as of another day.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        copied = local.copy(Place(self._model, one.source, 1), one.source, sha256, folder)
        if _is_wheel(one.source):
            return self._wheels.keep(copied, one.source)
        self._policy.built(one.name or one.source, one.source)
        made_from = one.source if copied.is_dir() else f"{one.source}#sha256={sha256}"
        source = Source(one.source, copied.as_uri(), ("model", sha256), made_from)
        return self._wheels.built(source, builder)

    def _built(self, artifact: Artifact, place: str, builder: Builder) -> Kept:
        self._policy.built(artifact.name, artifact.filename)
        if not artifact.url.startswith((*_REMOTE, "/")):
            message = f"`{artifact.name}` has no file that can be installed"
            raise SolveFailedError(message, package=artifact.name)
        pinned = f"{artifact.name}=={artifact.version}"
        return self._wheels.built(
            Source(
                title=pinned,
                line=f"{pinned} --hash=sha256:{artifact.sha256}",
                identity=("sdist", artifact.sha256),
                made_from=f"{place}#sha256={artifact.sha256}",
                options=(f"--no-binary={artifact.name}",
                         f"--exclude-newer-package={artifact.name}=false"),
            ),
            builder,
        )  # fmt: skip


def _package(name: str, kept: Kept, url: str = "") -> Package:
    """Return the package of a wheel that is kept; *url* is the model's own, if it names one."""
    return Package(name, kept.version, kept.sha256, kept.filename, url, "kept", kept.made_from)


def _is_wheel(source: str) -> bool:
    return source.lower().endswith(".whl")


def _hash(one: Requirement) -> str:
    return one.hashes[0].replace(":", "=") if one.hashes else ""
