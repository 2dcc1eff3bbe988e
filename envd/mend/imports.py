"""Tells which module is missing, and what brings it: a distribution, or the model's own code."""

from __future__ import annotations

import re
from dataclasses import replace

from envd.mend.failures import About, Diagnosis, Failure
from envd.modules import origin_of

# Who unpickles imports what the pickle names.
_UNPICKLERS = re.compile(r"/(cloudpickle|joblib|dill|pickle|skops|_pickle)\b|numpy_pickle|/mlflow/")


def _missing(failure: Failure, about: About) -> Diagnosis | None:
    module = failure.missing
    if not module:
        return None
    origin = origin_of(module)
    if not origin.candidates and module.partition(".")[0] == about.loader.partition(".")[0]:
        return _own(module, f"it is loaded by its module `{module}`, which is not there")
    if origin.distribution:
        remedy = about.wanted(origin.distribution) or origin.distribution
        others = f" ({', '.join(origin.others)} bring it too)" if origin.others else ""
        return Diagnosis(
            "MODULE_MISSING",
            f"`{module}` is not in its environment; `{origin.distribution}` brings it",
            f"ask for `{remedy}`{others}",
            module,
            remedy,
            origin.candidates,
        )
    if origin.others:
        return Diagnosis(
            "MODULE_MISSING",
            f"`{module}` is not in its environment, and several distributions bring it",
            f"ask for the one it was made with: {', '.join(origin.others)}",
            module,
            candidates=origin.others,
        )
    return _unheard_of(module, failure, about)


def _unheard_of(module: str, failure: Failure, about: About) -> Diagnosis:
    importer = failure.importer
    is_own = bool(about.code) and f"/{about.code.strip('./')}/" in importer
    if is_own:
        message = f"the model's own code imports `{module}`, which is not in it"
        return replace(_own(module, message), imported=True)
    if failure.stage == "load" and (
        _UNPICKLERS.search(importer) or "/site-packages/" not in importer
    ):
        return _own(
            module, f"the model was pickled with `{module}`, which is not in its environment"
        )
    return Diagnosis(
        "MODULE_MISSING",
        f"`{module}` is not in its environment, and what brings it is not known",
        "find out what it was installed from where the model was made, and ask for that",
        module,
        imported=True,
    )


def _own(module: str, message: str) -> Diagnosis:
    name = module.partition(".")[0]
    advice = (
        f"if `{name}` is your own module, log the model again with it "
        f'(`code_paths=["{name}"]` or `infer_code_paths=True`); if it is not, ask for the '
        "distribution that brings it"
    )
    return Diagnosis("CODE_MISSING", message, advice, module)


RULES = (_missing,)
