"""URLs as they go into keys, records and messages: spelt one way, and without secrets."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from envd.events import Note
from envd.model.texts import shown
from envd.secrets import without_login
from envd.spec.place import Place

PYPI = "https://pypi.org/simple"
# PyPI under the names that files give it; all of them mean "the ordinary index".
_PYPI = re.compile(r"https?://(pypi\.org|pypi\.python\.org)/simple/?")
# What leads elsewhere than the URL begins to say, encoded or not.
_DOTS = re.compile(r"(/|%2f|%5c)(\.|%2e){1,2}(/|%2f|%5c|[?@;]|$)", re.IGNORECASE)


_LONGEST = 2_000
# A host that any two readers take for the same one, and a port.
_AUTHORITY = re.compile(
    r"[^:/?#]+://(?P<user>[\w.-]+@)?(?P<host>[A-Za-z0-9][\w.-]*|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?(?=[/?]|$)",
    re.ASCII,
)
_OF_A_FILE = re.compile(r"(?:git\+)?file:///", re.IGNORECASE)


def is_pypi(url: str) -> bool:
    """Whether *url* is the index that is meant when none is named."""
    return _PYPI.fullmatch(without_login(url)) is not None


def canonical_host(url: str) -> str:
    """Return *url* with its scheme and host in lower case, which is how they compare."""
    found = re.match(r"[^:/?#]+://[^/?#]*", url)
    return found[0].lower() + url[found.end() :] if found else url


def file_name(url: str) -> str:
    """Return the name of the file *url* leads to, decoded."""
    return unquote(urlsplit(url).path.rpartition("/")[2])


def without_fragment(url: str) -> str:
    """Return *url* up to its `#`."""
    return url.partition("#")[0]


def cleaned(place: Place, url: str) -> tuple[str, tuple[Note, ...]]:
    """Return *url* as it may be kept and shown, with a note where credentials were cut.

    They come from envd's settings, netrc or a keyring: what stands in a model is known
    to everybody who may read it.

    Raises:
        ModelInvalidError: it is no URL that means one place.
    """
    bare = canonical_host(without_fragment(_without_secret(url)))
    if len(bare) > _LONGEST or not _means_one_place(bare):
        why = f"`{shown(bare)}` is not a URL that means one place"
        raise place.invalid(why)
    if "?" in bare:
        # It may be a signature or a token, and no download can do without it.
        why = (
            f"`{shown(bare.partition('?')[0])}` has a query (`?...`), which may hold a secret; "
            "give the file another place, or its index in `index.urls`"
        )
        raise place.invalid(why)
    if _without_secret(url) == url:
        return bare, ()
    message = (
        f"the credentials in the URL `{bare}` are not used; they belong in `index.urls`, "
        "netrc or a keyring"
    )
    return bare, (Note("CREDENTIALS_CUT", message, bare),)


def _means_one_place(url: str) -> bool:
    is_plain = re.search(r"[\s\\\x00-\x20\x7f-\U0010ffff$`'\"<>]", url) is None
    has_host = (_AUTHORITY.match(url) or _OF_A_FILE.match(url)) is not None
    return is_plain and has_host and _DOTS.search(url) is None


def _without_secret(url: str) -> str:
    """Cut what is secret: over ssh a user's name is part of the address."""
    if re.match(r"git\+ssh://", url, re.IGNORECASE):
        return re.sub(r"://([^/?#@:]*):[^/?#]*@", r"://\1@", url)
    return without_login(url)
