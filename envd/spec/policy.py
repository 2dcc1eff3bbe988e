"""What a model's files may ask for, besides packages of the indexes the settings name.

Policy is not part of a key: what a model asks for is checked whenever its files are read,
and what it resolved to whenever a lock or an environment is about to be used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from envd.errors import PolicyDeniedError
from envd.events import Note
from envd.model.texts import shown
from envd.secrets import without_login
from envd.settings.sections import Security
from envd.spec import channels
from envd.spec.channels import Channel
from envd.spec.local import Budget
from envd.spec.place import Place
from envd.spec.urls import canonical_host

PROFILES = ("dev", "standard", "strict")


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one profile. Each returns the note to leave, or raises PolicyDeniedError.

    `budget` is what reading the packages of one model's own may cost, all of them.
    """

    profile: str
    allowed: Security
    environ: Mapping[str, str]
    budget: Budget | None = field(default=None, compare=False)

    @property
    def wheels_only(self) -> bool:
        """Whether nothing may be built, and everything is tied to a hash."""
        return self.profile == "strict"

    def index(self, place: Place, url: str) -> Note:
        """Judge a package index, or a page of links, that a model names."""
        message = f"packages come from `{url}` as well, which the model names"
        note = Note("INDEX_FROM_MODEL", message, url)
        return self._listed(place, f"the index `{url}`", url, "indexes", note)

    def source(self, place: Place, url: str) -> Note:
        """Judge a URL or a repository that a requirement comes from."""
        message = f"a package comes from `{url}`, which the model names"
        note = Note("SOURCE_FROM_MODEL", message, url)
        return self._listed(place, f"the source `{url}`", url, "sources", note)

    def channel(self, place: Place, channel: Channel) -> Note:
        """Judge a conda channel whose packages a model uses."""
        name, listed = channel.name, self.allowed.channels
        if self.profile != "dev" and not any(_covers(one, name) for one in listed):
            raise _denied(place, f"the channel `{name}`", "channels")
        message = f"the model uses packages of the channel `{name}`"
        return Note("CHANNEL_FROM_MODEL", message, name)

    def local(self, place: Place, path: str) -> Note:
        """Judge a package that lies in the model."""
        if self.profile != "dev" and not self.allowed.local:
            raise _denied(place, f"the package `{path}` of the model's own", "local")
        return Note("PACKAGE_FROM_MODEL", f"the package `{path}` lies in the model", path)

    def editable(self, place: Place, what: str) -> Note:
        """Judge `-e`: built like any other source, since nobody edits an environment."""
        if self.profile != "dev":
            why = f"`-e` (editable), which only the profile `dev` takes; write `{what}` without it"
            raise _denied(place, why, "profile")
        return Note("EDITABLE_BUILT", f"`{what}` is built and installed, not edited", what)

    def variable(self, place: Place, name: str) -> tuple[str, Note]:
        """Return the value of `${name}`.

        Not even `dev` gives every variable away: `${AWS_SECRET}` in the URL of an index
        would send it there.
        """
        if name not in self.allowed.variables:
            raise _denied(place, f"the variable `${{{shown(name)}}}`", "variables")
        if name not in self.environ:
            message = f"`${{{name}}}` is allowed, and is not set where envd runs; set it"
            raise place.invalid(message, variable=name)
        note = Note("VARIABLE_EXPANDED", f"`${{{name}}}` was replaced by its value", name)
        return self.environ[name], note

    def listed_only(self) -> Policy:
        """Return the rules that go by the lists alone, whatever the profile."""
        return replace(self, profile="standard")

    def for_one_reading(self) -> Policy:
        """Return the rules for reading one model once."""
        return replace(self, budget=Budget())

    def built(self, name: str, made_from: str) -> None:
        """Judge a package that is no wheel of an index or a URL.

        Raises:
            PolicyDeniedError: this profile takes wheels only.
        """
        if self.wheels_only:
            message = (
                f"`{name}` has no wheel for this Python (only `{made_from}`), and "
                '`security.profile = "strict"` takes wheels only; '
                "ask for a version that has one, provide it in `index.find_links`, or, where "
                "it was locked under another profile, lock it anew with `envctl lock --upgrade`"
            )
            raise PolicyDeniedError(message, package=name, setting="security.profile")

    def hashed(self, place: Place, url: str, hashes: tuple[str, ...]) -> None:
        """Judge the URL of a file, which only a hash ties to what it was.

        Raises:
            PolicyDeniedError: this profile wants one, and there is none.
        """
        if self.wheels_only and not hashes:
            why = f"the URL `{url}` without a hash (write `{url}#sha256=...`)"
            raise _denied(place, why, "profile")

    def admits(self, profile: str) -> bool:
        """Whether what was built under *profile* may be used under this one."""
        return profile in PROFILES and PROFILES.index(profile) >= PROFILES.index(self.profile)

    def _listed(self, place: Place, what: str, url: str, setting: str, note: Note) -> Note:
        prefixes = getattr(self.allowed, setting)
        if self.profile == "dev" or any(_begins(url, prefix) for prefix in prefixes):
            return note
        raise _denied(place, what, setting)


def of(security: Security, environ: Mapping[str, str] = os.environ) -> Policy:
    """Return the rules that *security* sets."""
    # Only the owner can reach a daemon or this process; a wider exposure is `standard`.
    profile = "dev" if security.profile == "auto" else security.profile
    return Policy(profile, security, environ)


def _begins(url: str, prefix: str) -> bool:
    """Whether *url* lies below *prefix*: `https://a.org` does not cover `https://a.org.evil`."""
    given, wanted = canonical_host(url), canonical_host(without_login(prefix)).rstrip("/")
    # After a path `@` begins a revision; after a host, it would have been a user's name.
    ends = ("/", "@", "#") if "/" in wanted.partition("://")[2] else ("/",)
    return given == wanted or given.startswith(tuple(f"{wanted}{end}" for end in ends))


def _covers(listed: str, channel: str) -> bool:
    """Whether the channel of the canonical name *channel* is that which is *listed*, or below it.

    That may have any spelling; its credentials say nothing of which channel it is.
    """
    try:
        names = [one.name for one in channels.expanded(channels.parse(listed))]
    except ValueError:
        return _begins(channel, listed)  # how names of channels begin: `https://`
    return any(channel == one or channel.startswith(f"{one}/") for one in names)


def _denied(place: Place, what: str, setting: str) -> PolicyDeniedError:
    variable = f"ENVD_SECURITY__{setting.upper()}"
    message = (
        f"{place.where()}: {what} is not allowed here; "
        f"`security.{setting}` ({variable}) would allow it"
    )
    return PolicyDeniedError(
        message, model=place.model, path=place.file, line=place.line, setting=f"security.{setting}"
    )
