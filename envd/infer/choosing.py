"""Chooses, of what a model loaded, what it has to ask for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from packaging.utils import canonicalize_name

from envd.events import Note
from envd.infer.closure import Installed
from envd.infer.lines import Inferred, Line, Local, local_path, written
from envd.infer.observing import Observed, Observer
from envd.model import Model
from envd.spec.dependencies import MLFLOWS
from envd.spec.flavors import recorded

_PICKLE = "<pickle>"
_MLFLOW = "mlflow"
_ENVD = "envd_worker"
_NO_INPUT = (
    "the model was loaded and not asked: it has no example of an input. What it imports when it "
    "predicts is not seen; give one by -i"
)
_NOT_STEADY = (
    "the model answers the same input differently each time: what it fails without is asked for, "
    "and not what its answer may be up to"
)


def infer(observer: Observer, on_step: Callable[[str], None] = lambda _: None) -> Inferred:
    """Return what the model of *observer* needs.

    *on_step* is told what is done.

    Raises:
        EnvdError: the model does not load or answer where it was made, which has to be first.
    """
    on_step("running the model")
    seen, without = _observed(observer)
    installed = Installed(seen.distributions, seen.markers)
    choice = _Choice(observer.model, seen, installed, without=without, at_first=set(without))
    choice.take_direct()
    while doubtful := choice.doubtful():
        on_step(f"running it without {', '.join(sorted(doubtful))}")
        choice.try_without(doubtful, observer)
    return choice.result(is_asked=observer.given is not None)


def _observed(observer: Observer) -> tuple[Observed, set[str]]:
    """Run the model; without mlflow if it has a loader of its own and can do without.

    Return as well what it did without.
    """
    if _top(observer.model.loader_module) != _MLFLOW:
        seen = observer.observe({"modules": [_MLFLOW], "distributions": MLFLOWS})
        if not seen.failure:
            return seen, set(MLFLOWS) & set(seen.distributions)
    seen = observer.observe()
    if seen.failure:
        raise seen.failure
    return seen, set()


@dataclass
class _Choice:
    """What is asked for so far, and why; `without` is what need not be, from `at_first` on."""

    model: Model
    seen: Observed
    installed: Installed
    kept: dict[str, str] = field(default_factory=dict)
    extras: dict[str, tuple[str, ...]] = field(default_factory=dict)
    without: set[str] = field(default_factory=set)
    at_first: set[str] = field(default_factory=set)
    is_steady: bool | None = None

    def take_direct(self) -> None:
        """Take what the model itself imports: its code, its pickles, its flavors."""
        loaded = self.seen.loaded()
        flavors = {str(canonicalize_name(name)) for name in recorded(self.model)}
        self.kept |= dict.fromkeys(sorted(flavors & loaded), "a flavor of the model")
        for who, what in self.seen.edges:
            owner = self.seen.modules[what].owner
            if owner and self._is_own(who) and owner not in self.kept:
                self.kept[owner] = f"imported by {'its pickle' if who == _PICKLE else who}"
        if _top(self.model.loader_module) == _MLFLOW:
            # What a `.pth` file imports is none of what was loaded.
            found = (self.seen.modules.get(one) for one in (_MLFLOW, f"{_MLFLOW}.pyfunc"))
            self.kept |= {one.owner: "the loader of the model" for one in found if one}
        self.kept.pop("", None)
        for key in [key for key in self.kept if self._is_local(key)]:
            del self.kept[key]

    def _is_own(self, who: str) -> bool:
        """Whether *who* is code of the model: nobody's, or of a distribution no index has."""
        if who == _PICKLE:
            return True
        if _top(who) == _ENVD:
            return False
        module = self.seen.modules.get(who) or self.seen.modules.get(_top(who))
        if module is None:
            # What a pickle brings along is of a module that need not be there.
            return _top(who) not in sys.stdlib_module_names
        return not module.owner or self._is_local(module.owner)

    def _is_local(self, key: str) -> bool:
        return bool(local_path(self.seen.distributions[key]))

    def doubtful(self) -> set[str]:
        """Return what was loaded, but neither the model nor what it requires asks for.

        Not what another of them would bring.
        """
        brought = self.installed.brought(self.kept, self.extras)
        left = self.seen.loaded() - set(self.kept) - brought - self.without
        left = {key for key in left if not self._is_local(key)}
        # In a circle each would be another's.
        tops = {key for key in left if not self._is_brought_by(key, left - {key})}
        return tops or left

    def _is_brought_by(self, key: str, others: Iterable[str]) -> bool:
        return any(key in self.installed.brought([one]) for one in others)

    def try_without(self, doubtful: set[str], observer: Observer) -> None:
        """Run the model without the *doubtful*, and take those it cannot do without."""
        if self._does_without(self.without | doubtful, observer):
            self.without |= doubtful
            return
        if len(doubtful) == 1:
            self._take(*doubtful)
            return
        for key in sorted(doubtful):
            if self._does_without(self.without | {key}, observer):
                self.without.add(key)
            else:
                self._take(key)

    def _does_without(self, keys: set[str], observer: Observer) -> bool:
        found = observer.observe(self._hidden(keys))
        if found.failure or found.answer == self.seen.answer:
            return found.failure is None
        return not self._is_always_the_same(observer)

    def _is_always_the_same(self, observer: Observer) -> bool:
        """Whether the model gives the answer that it gave; one that draws lots does not."""
        if self.is_steady is None:
            again = observer.observe(self._hidden(self.at_first))
            self.is_steady = again.answer == self.seen.answer
        return self.is_steady

    def _hidden(self, keys: set[str]) -> dict[str, Sequence[str]]:
        return {"modules": self._tops(keys), "distributions": sorted(keys)}

    def _tops(self, keys: set[str]) -> Sequence[str]:
        """Return the modules of *keys* that are in none of theirs."""
        names = {one.name for one in self.seen.modules.values() if one.owner in keys}
        names |= {_MLFLOW} if keys & set(MLFLOWS) else set()
        return sorted(
            name
            for name in names
            if not any(name[:at] in names for at, one in enumerate(name) if one == ".")
        )

    def _take(self, key: str) -> None:
        """Take *key*, by the extra of who imported it where it came with one."""
        importers = self._importers(key) - {key}
        chosen = self.kept.keys() | self.installed.brought(self.kept, self.extras)
        found = [
            (len(brought), one, extra)
            for one in sorted(importers & chosen)
            for extra in self.seen.distributions[one].extras
            if key in (brought := self._brought_whole(one, extra))
            # One distribution may well have been installed by itself: that an extra of what the
            # model does not know has it (`narwhals[pandas]`) shows nothing.
            and (one in self.kept or len(brought) > 1)
        ]
        if found:
            _, one, extra = min(found)
            self.extras[one] = tuple(sorted({*self.extras.get(one, ()), extra}))
            self.kept.setdefault(one, f"it imports {key}, which comes with its {extra}")
        else:
            by = ", ".join(sorted(importers)) or "what it loads"
            self.kept[key] = f"imported by {by}, which does not require it"

    def _importers(self, key: str) -> set[str]:
        owners = self.seen.modules
        return {
            owners[who].owner
            for who, what in self.seen.edges
            if owners[what].owner == key and who in owners and owners[who].owner
        }

    def _brought_whole(self, key: str, extra: str) -> set[str]:
        """Return what the *extra* of *key* brings, nothing if some of it is not installed."""
        required = list(self.installed.required(key, extra))
        if not all(self.installed.has(one) for one in required):
            return set()
        return {canonicalize_name(one.name) for one in required}

    def result(self, *, is_asked: bool) -> Inferred:
        """Return what was chosen, as lines."""
        order = sorted(self.kept, key=lambda key: (key not in MLFLOWS, key))
        options, lines, notes = [], [], []
        for key in order:
            found = written(self.seen.distributions[key], self.extras.get(key, ()))
            if found.option and found.option not in options:
                options.append(found.option)
            if found.note:
                notes.append(found.note)
            holders = tuple(one for one in order if one != key and self._holds(one, key))
            lines.append(Line(found.text, key, self.kept[key], holders))
        local = self._local()
        notes += [_local_note(one) for one in local]
        if not is_asked:
            notes.append(Note("NOT_ASKED", _NO_INPUT))
        if self.is_steady is False:
            notes.append(Note("ANSWERS_DIFFER", _NOT_STEADY))
        return Inferred(
            options=tuple(options),
            lines=tuple(lines),
            local=local,
            modules=self._code(),
            without=tuple(sorted(self.without)),
            notes=tuple(notes),
            python=self.seen.markers["python_full_version"],
            is_asked=is_asked,
        )

    def _holds(self, one: str, key: str) -> bool:
        return key in self.installed.brought([one], self.extras)

    def _local(self) -> tuple[Local, ...]:
        found = {key for key in self.seen.loaded() if self._is_local(key)}
        return tuple(
            Local(
                one.name,
                one.version,
                local_path(one),
                tuple(name for name in self._tops({one.key}) if "." not in name),
            )
            for one in (self.seen.distributions[key] for key in sorted(found))
        )

    def _code(self) -> tuple[tuple[str, str], ...]:
        """Return the modules that are nobody's and not in the model."""
        home = self.model.path.resolve()
        return tuple(
            (one.name, str(one.file))
            for one in sorted(self.seen.modules.values(), key=lambda one: one.name)
            if not one.owner and not one.file.is_relative_to(home)
        )


def _top(module: str) -> str:
    return module.partition(".")[0]


def _local_note(one: Local) -> Note:
    modules = ", ".join(one.modules)
    message = (
        f"{one.name} {one.version} is no index's: it was installed from {one.path}. Record the "
        f"model with its code ({modules}), or put a wheel of it into the model or an index"
    )
    return Note("LOCAL_DISTRIBUTION", message, one.name)
