"""What a model that cannot be loaded, or does not predict, lacks: told from how it fails."""

from __future__ import annotations

from envd.mend import imports, machine, versions
from envd.mend.failures import About, Diagnosis, Failure

_RULES = (*versions.RULES, *machine.RULES, *imports.RULES)


def diagnose(failure: Failure, about: About) -> Diagnosis:
    """Return what *failure* comes from, as far as it can be told."""
    found = (rule(failure, about) for rule in _RULES)
    return next((one for one in found if one), None) or _unknown(failure)


def _unknown(failure: Failure) -> Diagnosis:
    where = "while it was loaded" if failure.stage == "load" else "when it was asked"
    if failure.reason == "PAYLOAD_INVALID":
        advice = "give an input that fits its signature, or log it with an example that does"
        return Diagnosis("INPUT_REFUSED", failure.message, advice)
    advice = f"what it raised {where} is all that is known"
    return Diagnosis("MODEL_FAILS", failure.message, advice, failure.exception)
