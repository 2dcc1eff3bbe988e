"""Requirements that come from a URL, a repository, or the model itself."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from packaging import utils

from envd.events import Note
from envd.model.texts import shown
from envd.spec import local, requirement, urls
from envd.spec.place import Place
from envd.spec.policy import Policy
from envd.spec.requirement import Requirement

ARCHIVES = (".tar.gz", ".zip", ".tar.bz2", ".tgz", ".tar.xz", ".tar")
_NAMED = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*\s*(?:\[[\w\s,.-]*\])?)\s*@\s*(?P<place>\S.*)")
_BARE = re.compile(r"\.{0,2}/|\.{1,2}$|[A-Za-z][A-Za-z0-9+.-]*:")
_EXTRAS = re.compile(r"(?P<place>[^\[\]]+)(?P<extras>\[[\w\s,.-]*\])(?P<rest>(?:&[^\[\]]*)?)")
_SCHEME = re.compile(r"(?:git\+(?:https?|ssh|git|file)|https?|file)://", re.IGNORECASE)
_WHEEL = re.compile(
    r"(?P<distribution>[A-Za-z0-9][\w.]*-[\w.!+]+(?:-\d[\w.]*)?)-[\w.]+-[\w.]+-[\w.]+\.whl",
    re.ASCII,
)
_MAX_DOTS = 40
_PARTS = {"egg", "subdirectory", "sha256"}


def is_source(text: str) -> bool:
    """Whether *text* names a place rather than a package of an index."""
    bare = text.partition(" ;")[0].partition(" --")[0].strip()
    return (
        _NAMED.fullmatch(bare) is not None
        or _BARE.match(bare) is not None
        or _without_extras(bare).lower().endswith((".whl", *ARCHIVES))
        or ("/" in bare and not re.search(r"[<>=!~;]", bare))
    )


def _without_extras(text: str) -> str:
    return text.partition("#")[0].partition("[")[0].rstrip()


def parse(place: Place, text: str, policy: Policy) -> tuple[Requirement, tuple[Note, ...]]:
    """Read a requirement that comes from no index.

    Raises:
        ModelInvalidError: it cannot be used, or leads out of the model.
        PolicyDeniedError: *policy* does not allow where it comes from.
    """
    bare, hashes = requirement.without_hashes(text)
    bare, _, marker = bare.partition(" ;")
    bare = bare.rstrip(";")
    named = _NAMED.fullmatch(bare)
    name, where = (named["name"], named["place"].strip()) if named else ("", bare.strip())
    if not named and (extra := _EXTRAS.fullmatch(where)):
        name, where = extra["extras"], extra["place"] + extra["rest"]
    if re.search(r"[\s\\\x00-\x1f\x7f]", where):
        why = f"`{shown(where)}` is neither a URL nor a path"
        raise place.invalid(why)
    if "://" in where or re.match(r"(?!\.)[A-Za-z][A-Za-z0-9+.-]*:", where):
        found, notes = _remote(place, where, policy)
    else:
        found, notes = _local(place, where, policy)
    found = replace(found, hashes=_hashes(place, found, hashes))
    if not found.source.startswith(("./", "git+")):
        policy.hashed(place, found.source, found.hashes)
    return _named(place, found, name, marker.strip()), notes


def _hashes(place: Place, found: Requirement, given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the hashes *found* may have, where its line gives some as well."""
    if not found.source.startswith("./"):
        return tuple(sorted({*found.hashes, *given}))
    if given and not {*given} & {*found.hashes}:
        why = f"`{found.source}` has another hash than the line says, {found.hashes[0]}"
        raise place.invalid(why)
    return found.hashes


def _named(place: Place, found: Requirement, name: str, marker: str) -> Requirement:
    """Give *found* the name, the extras and the marker that stand in the line."""
    given = f"{found.name if name.startswith('[') or not name else ''}{name}"
    extras_only = given.startswith("[") or not given
    text = f"{'unnamed' if extras_only else ''}{given}" + (f" ; {marker}" if marker else "")
    parsed = requirement.parse(place, text)
    if found.name and not extras_only and parsed.name != found.name:
        why = f"`{parsed.name}` is asked for from a file of `{found.name}`"
        raise place.invalid(why, requirement=parsed.name)
    return replace(
        parsed,
        name="" if extras_only else parsed.name,
        hashes=found.hashes,
        source=found.source,
    )


def _remote(place: Place, text: str, policy: Policy) -> tuple[Requirement, tuple[Note, ...]]:
    if not _SCHEME.match(text):
        scheme = shown(text.partition(":")[0], 30)
        why = f"`{scheme}:` is not a scheme packages come by; use https or git+https"
        raise place.invalid(why, scheme=scheme)
    if text.lower().startswith("file:") and (inside := _inside(place, text)) is not None:
        return _local(place, inside, policy)
    bare, _, fragment = text.partition("#")
    parts = _parts(place, fragment)
    url, notes = urls.cleaned(place, bare)
    is_repository = url.lower().startswith("git+")
    if is_repository and "@-" in url:
        # git would take the name of such a branch for an option.
        why = f"`{shown(url)}` names a branch that begins with `-`"
        raise place.invalid(why)
    if re.match(r"(?:git\+)?file:", url, re.IGNORECASE):
        _must_be_listed(place, url, policy)
    file = "" if is_repository else urls.file_name(url)
    if not is_repository and not file.lower().endswith((".whl", *ARCHIVES)):
        why = f"`{shown(url)}` is neither a wheel nor a source archive; `git+` begins a repository"
        raise place.invalid(why)
    subdirectory = parts.get("subdirectory", "")
    if re.search(r"(^|/)\.\.(/|$)|^/|[^\w./-]", subdirectory):
        why = f"`#subdirectory={shown(subdirectory)}` is not a path below the source"
        raise place.invalid(why)
    source = f"{url}#subdirectory={subdirectory}" if subdirectory else url
    notes = (*notes, policy.source(place, source))
    name = parts.get("egg") or _name_of(place, file)
    hashes = (f"sha256:{parts['sha256'].lower()}",) if "sha256" in parts else ()
    return Requirement(_canonical(place, name), "", hashes, source), notes


def _parts(place: Place, fragment: str) -> dict[str, str]:
    parts = dict(parse_qsl(fragment))
    if unknown := sorted(parts.keys() - _PARTS):
        why = f"`#{shown(unknown[0], 50)}=` is not known; {', '.join(sorted(_PARTS))} are"
        raise place.invalid(why)
    if "[" in parts.get("egg", ""):
        why = "the extras in `#egg=` are encoded; write `NAME[EXTRA] @ URL`"
        raise place.invalid(why)
    return parts


def _must_be_listed(place: Place, url: str, policy: Policy) -> None:
    """Refuse a file outside the model that no setting names, whatever the profile."""
    listed = policy.listed_only()
    listed.source(place, url)


def _inside(place: Place, url: str) -> str | None:
    """Return the path in the model that a `file:` URL leads to, None if it leads elsewhere."""
    bare, hashmark, fragment = url.partition("#")
    try:
        path = Path(unquote(urlsplit(bare).path))
        return f"./{path.relative_to(place.model)}{hashmark}{fragment}"
    except ValueError:
        return None


def _local(place: Place, text: str, policy: Policy) -> tuple[Requirement, tuple[Note, ...]]:
    path, _, fragment = text.partition("#")
    parts = _parts(place, fragment)
    if "subdirectory" in parts:
        below = shown(f"{path}/{parts['subdirectory']}")
        why = f"`#subdirectory=` of a path; name `{below}` itself"
        raise place.invalid(why)
    found, digest = local.package(place, path, policy.budget or local.Budget())
    if parts.get("sha256", digest).lower() != digest:
        why = f"`{found}` has another hash than its fragment says, {digest}"
        raise place.invalid(why)
    note = policy.local(place, found)
    name = parts.get("egg") or _name_of(place, found.rpartition("/")[2])
    return Requirement(_canonical(place, name), "", (f"sha256:{digest}",), found), (note,)


def _name_of(place: Place, file: str) -> str:
    """Return the distribution whose file *file* is, empty where its name does not say."""
    if file.lower().endswith(".whl"):
        if not (name := _name_of_wheel(file)):
            why = f"`{shown(file)}` is not the name of a wheel"
            raise place.invalid(why)
        return name
    try:
        return utils.parse_sdist_filename(file)[0]
    except ValueError:
        return ""


def _name_of_wheel(file: str) -> str | None:
    found = _WHEEL.fullmatch(file)
    if not found or file.count(".") > _MAX_DOTS:
        return None
    try:
        # Without its own tags: of `py1.py2-abi1.abi2-...` all there are between them are made.
        return utils.parse_wheel_filename(f"{found['distribution']}-py3-none-any.whl")[0]
    except utils.InvalidWheelFilename:
        return None


def _canonical(place: Place, name: str) -> str:
    return requirement.parse(place, name).name if name else ""
