"""Match specs: how conda names packages, in all its spellings, and one spelling for each.

The source is conda's own reader (conda/models/match_spec.py, conda/models/version.py).
What does not name one package is refused (globs, files, conditions), and so is what conda
and rattler read in two ways, or in one that nobody means.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from envd.spec import channels
from envd.spec.channels import SUBDIRS, Channel

_LONGEST = 4_000
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
_IN_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_PLATFORM = re.compile(r"\b(?:linux|osx|win|unix|x86|arm|aarch|ppc64le|py)(?:_?\d+)?\b")
_CONDITION = re.compile(r";|\sif\s")
_VERSION_AND_BUILD = re.compile(r"([^ ]+?)(?:(?: |(?<![=<>!~,|])=)([^ =<>!~,|]+))?")
_KEY = re.compile(r"""(\w+)\s*=\s*('[^']*'|"[^"]*"|[^'",\s]*)(?:\s*,\s*|\s+|$)""", re.ASCII)
# In this order within an expression: what is bounded from below is read first.
_OPERATORS = ("", "==", "~=", ">=", ">", "<", "<=", "!=")
_TERM = re.compile(
    r"(?P<operator>==?|~=|>=?|<=?|!=)?"
    r"(?P<version>(?:\d+!)?[a-z0-9]+(?:[._-][a-z0-9]+)*_?(?:\+[a-z0-9]+(?:[._][a-z0-9]+)*)?)"
    r"(?P<star>\.?\*)?",
    re.ASCII,
)
_FORMS = {
    "build": re.compile(r"[\w.+*]*", re.ASCII),
    "build_number": re.compile(r"(?:(?:==|!=|>=?|<=?)?\d{1,9})?", re.ASCII),
    "subdir": re.compile("|".join(("", *sorted(SUBDIRS)))),
    "md5": re.compile(r"(?:[0-9a-fA-F]{32})?"),
    "sha256": re.compile(r"(?:[0-9a-fA-F]{64})?"),
}


@dataclass(frozen=True, slots=True)
class MatchSpec:
    """What one entry asks for; what is empty may be anything.

    `version` is an expression with one spelling: `==1.2`, `1.2.*`, `>=1.2,<2`, and `|`
    between alternatives. `build` may hold `*`; `build_number` may begin with an operator.
    """

    name: str
    version: str = ""
    build: str = ""
    build_number: str = ""
    channel: Channel | None = None
    subdir: str = ""
    md5: str = ""
    sha256: str = ""

    @property
    def text(self) -> str:
        """The canonical spelling, which conda and rattler read alike."""
        channel = f"{self.channel.name}::" if self.channel else ""
        version = f" {self.version}" if self.version else ""
        given = [f"{key}='{value}'" for key in _FORMS if (value := getattr(self, key))]
        return f"{channel}{self.name}{version}" + (f"[{','.join(given)}]" if given else "")

    @property
    def names_a_build(self) -> bool:
        """Whether it asks for one build by its name, not for a kind of builds."""
        return self.build != "" and "*" not in self.build

    def of_any_build(self) -> MatchSpec:
        """Return the same without what only the builds of one channel have."""
        build = "" if self.names_a_build else self.build
        return replace(self, build=build, build_number="", subdir="", md5="", sha256="")


def parse(text: str) -> MatchSpec:
    """Return what *text* asks for.

    Raises:
        ValueError: it is no match spec, or one that is refused; it says why.
    """
    head, given = _without_bracket(_without_comment(text))
    channel, _, head = head.rpartition("::")
    name, version, build = _name_version_build(head.strip())
    given = {"version": version, "build": build, "channel": channel} | given
    found, subdir = _channel(given.pop("channel"))
    given = {"subdir": subdir} | given
    return MatchSpec(
        name.lower(),
        version=_expression(given.pop("version")),
        channel=found,
        **{key: _value(key, value) for key, value in given.items()},
    )


def has_selector(line: str) -> bool:
    """Whether *line* ends with a comment that conda-build and conda-lock read: `# [linux]`."""
    comment = line.partition("#")[2]
    return any(_PLATFORM.search(one) for one in _IN_BRACKET.findall(comment))


def _without_comment(text: str) -> str:
    text = re.sub(r"[ \t]+", " ", text)
    if len(text) > _LONGEST or not text.isprintable():
        message = "it is very long, or has control characters"
        raise ValueError(message)
    if has_selector(text) or _CONDITION.search(text.partition("#")[0]):
        message = "selectors and conditions are not read; name the packages for Linux without them"
        raise ValueError(message)
    return text.partition("#")[0].strip()


def _without_bracket(text: str) -> tuple[str, dict[str, str]]:
    """Return what stands before `[key=value,...]`, and that."""
    head, bracket, rest = text.partition("[")
    if bracket and not rest.endswith("]"):
        message = "its `[` is not closed at the end"
        raise ValueError(message)
    rest = rest.removesuffix("]").strip()
    given: dict[str, str] = {}
    while rest:
        found = _KEY.match(rest)
        key, value = (found[1], found[2].strip("'\"").strip()) if found else ("", "")
        if found is None or not value or key in given:
            message = "in `[...]` is something else than `key='value'`, or a key twice"
            raise ValueError(message)
        if key not in {"version", "channel", *_FORMS}:
            known = ", ".join(("version", "channel", *_FORMS))
            message = f"`{key[:20]}` is none of what may stand in `[...]`: {known}"
            raise ValueError(message)
        given[key] = value
        rest = rest[found.end() :]
    return head, given


def _name_version_build(text: str) -> tuple[str, str, str]:
    """Split `name`, `name=1.2=build` and `name 1.2 build` (`_parse_version_plus_build`)."""
    name = _NAME.match(text)
    if name is None or name[0].endswith((".conda", ".tar.bz2")):
        message = "it does not begin with the name of a package"
        raise ValueError(message)
    rest = text[name.end() :]
    found = _VERSION_AND_BUILD.fullmatch(_tight(rest).strip())
    if rest and (found is None or rest[0] not in " =<>!~"):
        message = "what follows the name is no version, nor a version and a build"
        raise ValueError(message)
    version, build = (found[1], found[2] or "") if found else ("", "")
    alone = re.fullmatch(r"(==?)([^=<>!~,|]+)", version)
    if alone and alone[2].endswith("*") and not (build and alone[1] == "=="):
        version = alone[2]
    elif alone and build:
        # `=1.2` is any 1.2, but with a build it is just that.
        version = f"=={alone[2]}"
    return name[0], version, build


def _tight(text: str) -> str:
    return re.sub(r" *([=<>!~,|]+) *", r"\1", text)


def _channel(text: str) -> tuple[Channel | None, str]:
    """Return the channel of `channel/subdir`, and the subdirectory; `*` is any."""
    text = text.strip().rstrip("/")
    head, _, last = text.rpartition("/")
    subdir = last.lower() if head and last.lower() in SUBDIRS else ""
    if (head if subdir else text) in {"", "*"}:
        return None, subdir
    try:
        return channels.parse(text), subdir
    except ValueError as error:
        message = f"its channel cannot be used: {error}"
        raise ValueError(message) from error


def _value(key: str, text: str) -> str:
    text = text if key == "build" else text.lower().removeprefix("==")
    if not _FORMS[key].fullmatch(text):
        message = f"it has a `{key}` that is none"
        raise ValueError(message)
    return "" if text.strip("*") == "" else text


def _expression(text: str) -> str:
    """Write a version expression so that equal ones are written alike."""
    alternatives = {_alternative(one) for one in _tight(text.lower()).split("|")} if text else {""}
    return "" if "" in alternatives else "|".join(sorted(alternatives))


def _alternative(text: str) -> str:
    terms = {_term(one.strip()) for one in text.split(",")} - {""}
    return ",".join(sorted(terms, key=_order))


def _order(term: str) -> tuple[int, str]:
    operator = re.match(r"[=<>!~]*", term)
    return _OPERATORS.index(operator[0] if operator else ""), term


def _term(text: str) -> str:
    """Return one comparison; `1.2` is `==1.2`, `=1.2` and `1.2*` are `1.2.*`."""
    found = _TERM.fullmatch(text)
    if text == "*":
        return ""
    if found is None or {"-", "_"} <= set(text) or not re.search(r"\d", text):
        message = "it has a version that is none, or a regular expression"
        raise ValueError(message)
    operator, star = found["operator"] or "", found["star"] or ""
    version = re.sub(r"(?<!\d)0+(?=\d)", "", found["version"])
    if operator in {"", "="}:
        return f"{version}.*" if operator or star else f"=={version}"
    if star == ".*" and operator in {">=", "<"}:
        return f"{operator}{version}"
    is_short = operator == "~=" and "." not in version
    if is_short or (star and (star, operator) != (".*", "!=")):
        message = f"`{operator}` with `{version}{star}` is read in more than one way"
        raise ValueError(message)
    return f"{operator}{version}{star}"
