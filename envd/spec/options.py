"""The options that may stand in a requirement file, those that say where packages come from."""

from __future__ import annotations

import re
from dataclasses import dataclass

from packaging.utils import canonicalize_name

from envd.events import Note
from envd.model.texts import shown
from envd.secrets import without_login
from envd.spec import local, urls
from envd.spec.place import Place
from envd.spec.policy import Policy

_ALIASES = {"-i": "--index-url", "-f": "--find-links", "--pypi-url": "--index-url"}
_URLS = {"--index-url", "--extra-index-url", "--find-links"}
_NAMES = {"--only-binary", "--no-binary"}
# These change nothing here: artifacts are chosen with the wheel first, and always by hash.
_IMPLIED = {"--prefer-binary", "--require-hashes"}
_NAME_LIST = re.compile(r"[A-Za-z0-9:][\w.:-]*(?:\s*,\s*[A-Za-z0-9:][\w.:-]*)*")
_PAGE = re.compile(r"https?://[^\s/?#]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Options:
    """What the options of a model's requirement files say together.

    PyPI among the indexes is the ordinary index, which the settings may have put another
    in the place of. `find_links` are URLs, or `./` and a directory of the model with the
    hash of what is in it after a `#sha256=`.
    """

    index_url: str = ""
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    no_index: bool = False
    prereleases: bool = False
    only_binary: tuple[str, ...] = ()
    no_binary: tuple[str, ...] = ()
    # The options that took back, with `:none:`, what was said before.
    taken_back: frozenset[str] = frozenset()

    def __add__(self, other: Options) -> Options:
        """Return both together; of two indexes the later one wins, as with pip."""
        return Options(
            other.index_url or self.index_url,
            _once(self.extra_index_urls + other.extra_index_urls),
            _once(self.find_links + other.find_links),
            self.no_index or other.no_index,
            self.prereleases or other.prereleases,
            _once(self._unless("--only-binary", other).only_binary + other.only_binary),
            _once(self._unless("--no-binary", other).no_binary + other.no_binary),
            self.taken_back | other.taken_back,
        )

    def _unless(self, name: str, other: Options) -> Options:
        return NO_OPTIONS if name in other.taken_back else self


NO_OPTIONS = Options()


def parse(place: Place, line: str, policy: Policy) -> tuple[Options, tuple[Note, ...]]:
    """Read a line that is an option.

    Raises:
        ModelInvalidError: it is none that a model may give.
        PolicyDeniedError: *policy* does not allow what it names.
    """
    name, _, value = re.sub(r"[\s=]+", "\0", line, count=1).partition("\0")
    name, value = _ALIASES.get(name, name), value.strip()
    if name in _URLS and value:
        return _location(place, name, value, policy)
    if name in _NAMES and _NAME_LIST.fullmatch(value):
        return _names(name, re.split(r"\s*,\s*", value)), ()
    if not value and name in {"--no-index", "--pre"} | _IMPLIED:
        return Options(no_index=name == "--no-index", prereleases=name == "--pre"), ()
    why = (
        f"the option `{shown(name, 100)}` is not accepted from a model; indexes come from envd's "
        "settings (`index.urls`, `index.find_links`)"
    )
    raise place.invalid(why, option=shown(name, 100))


def _names(option: str, values: list[str]) -> Options:
    is_taken_back = ":none:" in values
    # Of what stands in one list only what comes after it counts, too.
    after = values[len(values) - values[::-1].index(":none:") :] if is_taken_back else values
    names = _once(tuple(one if one == ":all:" else canonicalize_name(one) for one in after))
    taken_back = frozenset({option} if is_taken_back else ())
    if option == "--only-binary":
        return Options(only_binary=names, taken_back=taken_back)
    return Options(no_binary=names, taken_back=taken_back)


def _location(
    place: Place, name: str, value: str, policy: Policy
) -> tuple[Options, tuple[Note, ...]]:
    if name == "--find-links" and "://" not in value:
        path, digest = local.directory_of_packages(place, value, policy.budget or local.Budget())
        note = policy.local(place, path)
        return Options(find_links=(f"{path}#sha256={digest}",)), (note,)
    if not _PAGE.match(without_login(value)):
        why = f"`{shown(value)}` is not the URL of an index (`http://` or `https://`)"
        raise place.invalid(why, option=name)
    url, notes = urls.cleaned(place, value)
    if name == "--find-links":
        return Options(find_links=(url,)), (*notes, policy.index(place, url))
    if urls.is_pypi(url):
        url = urls.PYPI
    else:
        notes = (*notes, policy.index(place, url))
    url = url.rstrip("/")
    if name == "--index-url":
        return Options(index_url=url), notes
    return Options(extra_index_urls=(url,)), notes


def _once(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
