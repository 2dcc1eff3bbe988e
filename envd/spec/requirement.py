"""One requirement: what is accepted as one, and the canonical spelling of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from packaging import requirements, utils
from packaging.specifiers import InvalidSpecifier, Specifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from envd.model.texts import shown
from envd.spec import markers
from envd.spec.place import Place

# Without its hashes. The longest of public models has 200.
_LONGEST, _LONGEST_NAME = 4_000, 200
# `packaging` calls itself for each, and the marker is read again on a deeper stack.
_MAX_PARENTHESES = 50
_HASH = re.compile(r"\s--hash[=\s](\S+)")
_DIGEST = re.compile(r"[a-z0-9_]+:[0-9a-f]+")
# PEP 508 knows no escapes, but `packaging` evaluates them: `\n` would begin another line,
# an option of the installer's, in the file that is written afresh.
_UNPRINTABLE = re.compile(r"[\\\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LEGACY = re.compile(r"(?P<head>[A-Za-z0-9][\w.-]*\s*(?:\[[^\]]*\])?\s*)(?P<rest>[(<>=!~].*)")


@dataclass(frozen=True, slots=True, order=True)
class Requirement:
    """One requirement in its canonical spelling, and the hashes it allows.

    `name` is normalized (PEP 503); it is empty where only the source knows it. `text` is
    PEP 508 without a URL. `source` is where it comes from when that is no index: a URL,
    a repository, or `./` and a path in the model. Two requirements that mean the same are
    equal.
    """

    name: str
    text: str
    hashes: tuple[str, ...] = ()
    source: str = ""

    @property
    def pin(self) -> str | None:
        """The version it is pinned to with `==` or `===`, or None."""
        found = re.findall(r"===?([^=,*]+)(?=,|$)", self.text.partition(";")[0])
        return found[0] if len(found) == 1 else None

    @property
    def specifier(self) -> SpecifierSet:
        """The versions it allows, its marker aside."""
        return requirements.Requirement(self.text).specifier

    @property
    def marker(self) -> str:
        """When it applies, empty for always."""
        return self.text.partition("; ")[2]

    def at(self, specifier: str) -> Requirement:
        """Return it with another *specifier*, without hashes: those were of other versions."""
        head = re.match(r"[^=;<>!~]+", self.text.partition("; ")[0])
        marker = f"; {self.marker}" if self.marker else ""
        text = f"{head[0] if head else self.name}{specifier}{marker}"
        return Requirement(self.name, canonical(requirements.Requirement(text)))


def parse(place: Place, text: str) -> Requirement:
    """Return the requirement of an index's package that *text* is, canonical.

    Raises:
        ModelInvalidError: it is not one, or names a URL.
    """
    bare, hashes = without_hashes(text)
    head, _, marker = bare.partition(";")
    bare = bare if marker.strip() else head.rstrip()
    _must_be_plain(place, bare, hashes)
    try:
        parsed = requirements.Requirement(modern(bare))
        text = canonical(parsed)
        found = Requirement(utils.canonicalize_name(parsed.name), text, hashes)
        markers.must_evaluate(found.marker)
    except (ValueError, RecursionError) as error:
        why = f"`{shown(bare)}` is not a requirement: {shown(str(error).partition(chr(10))[0])}"
        raise place.invalid(why, requirement=shown(bare)) from error
    if hashes and not any(one.startswith("sha256:") for one in hashes):
        why = f"`{parsed.name}` has no sha256 hash; no other can be checked against the index"
        raise place.invalid(why, requirement=parsed.name)
    if parsed.url is not None:
        why = f"`{parsed.name}` comes from a URL or path; name a version that an index has"
        raise place.invalid(why, requirement=parsed.name)
    return found


def _must_be_plain(place: Place, bare: str, hashes: tuple[str, ...]) -> None:
    """Refuse what `packaging` would take long to read, or reads as something else."""
    name = re.match(r"[\w.-]*", bare)
    why = ""
    if found := _UNPRINTABLE.search(bare):
        why = f"it holds the character {found[0]!r}"
    elif len(bare) > _LONGEST or (name and name.end() > _LONGEST_NAME):
        why = f"it is over {_LONGEST} characters, or its name is over {_LONGEST_NAME}"
    elif bare.count("(") > _MAX_PARENTHESES:
        why = f"it holds over {_MAX_PARENTHESES} parentheses"
    elif wrong := [one for one in hashes if not _DIGEST.fullmatch(one)]:
        why = f"`{shown(wrong[0])}` is no hash"
    if why:
        why = f"`{shown(bare)}` is not a requirement: {why}"
        raise place.invalid(why, requirement=shown(bare))


def without_hashes(text: str) -> tuple[str, tuple[str, ...]]:
    """Return *text* without its `--hash` options, and the hashes these give."""
    hashes = {found.lower() for found in _HASH.findall(text)}
    return _HASH.sub("", text).strip(), tuple(sorted(hashes))


def canonical(parsed: requirements.Requirement) -> str:
    """Write a requirement so that equal ones are written alike, its URL left out."""
    extras = ",".join(sorted({utils.canonicalize_name(extra) for extra in parsed.extras}))
    specifiers = ",".join(sorted({_specifier(one) for one in parsed.specifier}))
    marker = f"; {parsed.marker}" if parsed.marker else ""
    return (
        utils.canonicalize_name(parsed.name)
        + (f"[{extras}]" if extras else "")
        + specifiers
        + marker
    )


def _specifier(one: Specifier) -> str:
    if one.operator == "===":
        return f"==={one.version}"
    if one.version.endswith(".*"):
        return f"{one.operator}{Version(one.version.removesuffix('.*'))}.*"
    # `~=1.4` and `~=1.4.0` differ.
    version = utils.canonicalize_version(one.version, strip_trailing_zero=one.operator != "~=")
    return f"{one.operator}{version}"


def modern(text: str) -> str:
    """Return *text* with the specifiers `packaging` refuses put in terms it takes.

    Only where their meaning is clear; whatever else is left as it is, to be refused:
    `>=1.*` is `>=1` and `<1.*` is `<1`; a version that is none (`pytz>=2004d`) came
    before all that are, so `>=` and `>` of it allow every version; a local version means
    nothing to `<`, `<=`, `>` and `>=` (PEP 440).
    """
    bare, semicolon, marker = text.partition(";")
    found = _LEGACY.fullmatch(bare.strip())
    if found is None or "@" in bare:
        return text
    inner = found["rest"].strip().removeprefix("(").removesuffix(")")
    parts = [part.strip() for part in inner.split(",") if part.strip()]
    kept = [one for part in parts if (one := _modern_specifier(part))]
    return f"{found['head']}{','.join(kept)}{semicolon}{marker}"


def _modern_specifier(text: str) -> str:
    found = re.fullmatch(r"(>=|<=|>|<)\s*(\S+)", text)
    if found is None or _is_specifier(text):
        return text
    operator, version = found.groups()
    if operator in {">=", "<"} and version.endswith(".*"):
        return f"{operator}{version.removesuffix('.*')}"
    if "+" in version and _is_specifier(f"{operator}{version.partition('+')[0]}"):
        return f"{operator}{version.partition('+')[0]}"
    if operator in {">=", ">"} and re.fullmatch(r"\d{4}[a-z]", version):
        return ""
    return text


def _is_specifier(text: str) -> bool:
    try:
        Specifier(text)
    except (InvalidSpecifier, InvalidVersion, ValueError):
        return False
    return True
