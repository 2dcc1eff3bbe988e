"""Finds out what a model lacks by supplying it and asking again, until it predicts.

Only what is known is supplied: a distribution is never taken because it is called as the module
that is missing. What else may be meant is shown, and taken where whoever asks names it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from packaging import requirements

from envd.mend.checking import Trial, check
from envd.mend.failures import Diagnosis
from envd.mend.report import Report, Verdict
from envd.mend.subject import Subject
from envd.spec import requirement, requirement_text

_MAX_ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Fixed:
    """How far it came: what was put there and helped, in its order, and the last report.

    Of that `requirements` have the exact versions that were tried last.
    """

    report: Report
    added: tuple[tuple[str, Diagnosis], ...]
    requirements: tuple[str, ...]

    @property
    def is_fixed(self) -> bool:
        """Whether it does what it should, and did not before."""
        return self.report.verdict is Verdict.OK and bool(self.added)


def fix(
    subject: Subject,
    trial: Trial,
    override: Sequence[str] = (),
    *,
    yes: Collection[str] = (),
    on_round: Callable[[Diagnosis, str], None] = lambda _found, _remedy: None,
) -> Fixed:
    """Check *subject*, put what it lacks there, and check it again, as often as it helps.

    Of distributions that are not known to bring a module those in *yes* may be taken. *on_round*
    gets what was found, and what is put there for it.
    """
    added: list[tuple[str, Diagnosis]] = []
    report = check(subject, trial, override)
    for _ in range(_MAX_ROUNDS):
        taken = {remedy for remedy, _ in added}
        found = next(_remedies(report, yes, taken), None)
        if found is None:
            break
        on_round(found[1], found[0])
        added.append(found)
        report = check(subject, trial, _with(override, added))
    pinned = _pinned(report, added)
    exact = _with(override, [(text, found) for text, (_, found) in zip(pinned, added, strict=True)])
    if report.verdict is Verdict.OK and exact != report.override:
        report = check(subject, trial, exact)
    helped = tuple(_helped(report, added))
    names = {_name(text) for text, _ in helped}
    return Fixed(report, helped, tuple(one for one in exact if _name(one) in names))


def _helped(report: Report, added: Sequence[tuple[str, Diagnosis]]) -> list[tuple[str, Diagnosis]]:
    """Return what was *added* but for what the last *report* finds as it was before."""
    if not report.environment_id:
        # It was built until the last came in.
        return list(added[:-1])
    left = {(one.code, one.subject) for one in report.findings}
    return [one for one in added if (one[1].code, one[1].subject) not in left]


def _remedies(
    report: Report, yes: Collection[str], taken: Collection[str]
) -> Iterator[tuple[str, Diagnosis]]:
    """Yield what supplies something that is missing, and was not tried yet."""
    for found in report.findings:
        remedy = found.remedy or _named(found, yes, taken)
        if remedy and remedy not in taken:
            yield remedy, found


def _named(found: Diagnosis, yes: Collection[str], taken: Collection[str]) -> str:
    """Return which of *yes* is taken for what was *found*, empty for none.

    Where nobody knows what brings a module, whoever names a distribution says that it does.
    """
    if found.code not in {"MODULE_MISSING", "CODE_MISSING"}:
        return ""
    likely = set(map(_name, found.candidates))
    free = [one for one in yes if one not in taken]
    of_these = [one for one in free if _name(one) in likely]
    return next(iter(of_these or free), "")


def _with(override: Sequence[str], added: Sequence[tuple[str, Diagnosis]]) -> tuple[str, ...]:
    """Return *override* and what was *added*, of each distribution the last."""
    found = {_name(text): text for text in override}
    for text, _ in added:
        found[_name(text)] = text
    return tuple(found.values())


def _pinned(report: Report, added: Sequence[tuple[str, Diagnosis]]) -> list[str]:
    versions = dict(report.versions)
    return [_exact(text, versions.get(_name(text), "")) for text, _ in added]


def _exact(text: str, version: str) -> str:
    found = requirements.Requirement(requirement.modern(text))
    # Where it is to come from is exact, and an index may have another of that name.
    if not version or found.url:
        return text
    extras = f"[{','.join(sorted(found.extras))}]" if found.extras else ""
    return f"{found.name}{extras}=={version}"


def _name(text: str) -> str:
    return requirement_text.line(0, text).name
