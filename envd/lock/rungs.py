"""As of when a spec is resolved: one try after the other, until one has an answer."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace

from envd.events import Note
from envd.spec import Spec

# Releases of these pin releases of those exactly: a pinned mlflow is no use without its own
# mlflow-skinny, whatever the date.
SIBLINGS = {
    "jax": ("jaxlib",),
    "mlflow": ("mlflow-skinny", "mlflow-tracing"),
    "mlflow-skinny": ("mlflow-tracing",),
    "opentelemetry-sdk": ("opentelemetry-api", "opentelemetry-semantic-conventions"),
    "pydantic": ("pydantic-core",),
}


@dataclass(frozen=True, slots=True)
class Rung:
    """One try: what was uploaded from a `moment` on does not exist; `day` is what to call it.

    `logged` is the moment the day ended on which the model was logged: until then the
    packages `exempt` exist. `limits` are constraints beside the spec's own, and `notes`
    what is worth knowing where this try has the answer. An answer `of_day` is that of one
    day, and not of every model of the month.
    """

    day: str = ""
    moment: str = ""
    logged: str = ""
    limits: tuple[str, ...] = ()
    exempt: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    of_day: bool = False

    @property
    def drops_bound(self) -> bool:
        """Whether the bounds of the spec do not hold in it."""
        return any(note.code == "BOUND_DROPPED" for note in self.notes)


def rungs(spec: Spec, day: str | None) -> list[Rung]:
    """Return the tries for *spec*, whose model was logged on *day*.

    The first day of the month, so that the models of a month share their locks; then the
    day itself. Going on to today helped no model, and hid the reason.
    """
    if not spec.as_of:
        return _bounded(spec, Rung()) or [Rung()]
    first = f"{spec.as_of}-01"
    # What was uploaded on the day itself may have been there already.
    after = dt.date.fromisoformat(day or first) + dt.timedelta(days=1)
    logged = f"{after.isoformat()}T00:00:00Z"
    month = Rung(first, f"{first}T00:00:00Z", logged)
    if day is None:
        return _bounded(spec, month) or [month]
    message = (
        f"nothing satisfied the model's requirements as of {first}; "
        f"they are resolved as of {day}, the day it was logged"
    )
    of_day = Rung(day, logged, logged, notes=(Note("AS_OF_DAY", message, day),), of_day=True)
    if not spec.bounds:
        return [month, of_day]
    tries = [_bounded(spec, one) for one in (month, of_day)]
    # Whether one comes so far depends on the day.
    dropped = replace(tries[0][1], of_day=True)
    return [tries[0][0], _exempt(spec, month), tries[1][0], dropped, tries[1][1]]


def _bounded(spec: Spec, rung: Rung) -> list[Rung]:
    """Return *rung* with the bounds of *spec*, and without: they may be of another time."""
    if not spec.bounds:
        return []
    when = f"of {rung.day} " if rung.day else ""
    message = f"no packages {when}go with `{', '.join(spec.bounds)}`; an older one is taken"
    dropped = Note("BOUND_DROPPED", message, spec.bounds[0])
    return [
        replace(rung, limits=spec.bounds),
        replace(rung, notes=(*rung.notes, dropped)),
    ]


def _exempt(spec: Spec, month: Rung) -> Rung:
    """Return *month* with the very versions the bounds begin with, released since then.

    Most models of a new mlflow's first month: the same answer for all of them, whatever
    their day.
    """
    pins = tuple(bound.replace(">=", "==") for bound in spec.bounds)
    names = {bound.partition(">=")[0] for bound in spec.bounds}
    names |= {sibling for name in names for sibling in SIBLINGS.get(name, ())}
    message = f"`{', '.join(pins)}` came out after {month.day} and is taken all the same"
    notes = (Note("RELEASED_SINCE", message, pins[0]),)
    return replace(month, limits=pins, exempt=tuple(sorted(names)), notes=notes)
