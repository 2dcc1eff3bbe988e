"""What is known to break old models, and how it is mended: one table of rules.

Each was needed by public models (79 were restored and loaded one by one); each leaves a
note. `resolve.repair = false` turns them off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from packaging.version import Version

from envd.events import Note
from envd.model import Model, files
from envd.spec import flavors
from envd.spec.dependencies import MLFLOWS, Dependencies
from envd.spec.match_spec import MatchSpec
from envd.spec.python import release
from envd.spec.requirement import Requirement

_FIRST_PYTHON_WITHOUT_SETUPTOOLS = (3, 12)
_FIRST_MLFLOW_WITHOUT_PKG_RESOURCES = Version("2.16")
# Packages that need minutes and a compiler, and often fail, where there is no wheel.
_COMPILED = (
    "catboost", "grpcio", "h5py", "lightgbm", "llvmlite", "matplotlib", "numba", "numpy",
    "pandas", "pyarrow", "scikit-learn", "scipy", "shap", "statsmodels", "tensorflow", "torch",
    "xgboost",
)  # fmt: skip
_CONDA_POST = re.compile(r"\.post20\d{6}$")
_FIRST_PYYAML_FOR_CYTHON_3 = Version("6.0.1")


@dataclass(frozen=True, slots=True)
class Rule:
    """One repair: why it is made, and what makes it; None where it does not apply."""

    reason: str
    repair: Callable[[Model, Dependencies], Dependencies | None]


def applied(model: Model, found: Dependencies) -> Dependencies:
    """Return *found* with every repair that applies to *model*."""
    for rule in RULES:
        found = rule.repair(model, found) or found
    return found


def with_mlflow(model: Model, found: Dependencies) -> Dependencies | None:
    """Return *found* with the mlflow that the loader of *model* needs, None where it is named."""
    is_named = any(one.name in MLFLOWS or _may_be_mlflow(one) for one in found.asked.requirements)
    is_named = is_named or any(one.name in MLFLOWS for one in found.packages)
    if is_named or model.loader_module.split(".")[0] != "mlflow":
        return None
    version = flavors.logged_with(model)
    added = Requirement("mlflow", "mlflow").at(f"=={version}" if version else "")
    message = f"`{added.text}` is added: `{model.loader_module}` needs it and nothing names it"
    asked = (*found.asked.requirements, added)
    return _noted(_asking(found, asked), "MLFLOW_ADDED", message, "mlflow")


def _may_be_mlflow(one: Requirement) -> bool:
    """Whether *one* is a repository or an archive that does not say its name, as MLflow's."""
    return not one.name and "mlflow" in one.source


def _bounded_mlflow(model: Model, found: Dependencies) -> Dependencies | None:
    bare = _left_open(found, MLFLOWS)
    lowest = _oldest_mlflow(model)
    if not bare or not lowest:
        return None
    name = min(bare).name
    bound = f"{name}>={lowest}"
    message = f"`{name}` is taken from {lowest} on, which the model was logged with or needs"
    return _noted(replace(found, bounds=(bound,)), "MLFLOW_BOUNDED", message, name)


def _oldest_mlflow(model: Model) -> str | None:
    """Return the mlflow that wrote *model*, or the first that wrote its format."""
    if version := flavors.logged_with(model):
        return str(version)
    if model.virtualenv_file:
        return "1.26"
    if files.exists(model.path, "requirements.txt"):
        return "1.18"
    return "1.9" if model.signature else None


def _with_setuptools(model: Model, found: Dependencies) -> Dependencies | None:
    named = {one.name for one in (*found.build, *found.asked.requirements)}
    python = release(found.python or "")
    has_seed = len(python) > 1 and python < _FIRST_PYTHON_WITHOUT_SETUPTOOLS
    if found.manager == "conda":
        return _with_conda_setuptools(model, found)
    if "setuptools" in named or not (has_seed or _imports_pkg_resources(model, found)):
        return None
    is_limited = any(one.name == "setuptools" for one in found.asked.constraints)
    added = Requirement("setuptools", "setuptools" if is_limited else "setuptools<81")
    why = "mlflow needs its pkg_resources"
    if has_seed:
        why = "every virtualenv of this Python has it"
    message = f"`{added.text}` is added: {why}"
    changed = replace(found, build=(*found.build, added))
    return _noted(changed, "SETUPTOOLS_ADDED", message, "setuptools")


def _with_conda_setuptools(model: Model, found: Dependencies) -> Dependencies | None:
    """Bound the setuptools that conda's pip brings, where nothing names one."""
    named = {one.name for one in found.packages} | {one.name for one in found.asked.requirements}
    if "setuptools" in named or not _imports_pkg_resources(model, found):
        return None
    added = MatchSpec("setuptools", "<81")
    message = f"`{added.text}` is added: mlflow needs its pkg_resources"
    changed = replace(found, packages=(*found.packages, added))
    return _noted(changed, "SETUPTOOLS_ADDED", message, "setuptools")


def _bounded_setuptools(model: Model, found: Dependencies) -> Dependencies | None:
    bare = _left_open(found, ("setuptools",))
    if not bare or not _imports_pkg_resources(model, found):
        return None
    changed = _replaced(found, {one: one.at("<81") for one in bare})
    message = "`setuptools` is read as `setuptools<81`, the last with pkg_resources"
    return _noted(changed, "SETUPTOOLS_BOUNDED", message, "setuptools")


def _imports_pkg_resources(model: Model, found: Dependencies) -> bool:
    named = [one for one in _asked(found) if one.name in MLFLOWS]
    # A conda package of mlflow says for itself what it needs.
    pins = [one.pin for one in named if one.pin]
    version = flavors.public_version(pins[0]) if pins else flavors.logged_with(model)
    return bool(named) and (version is None or version < _FIRST_MLFLOW_WITHOUT_PKG_RESOURCES)


def _without_conda_post(_: Model, found: Dependencies) -> Dependencies | None:
    everything = (*found.build, *found.asked.requirements, *found.asked.constraints)
    wrong = {one for one in everything
             if one.pin and not one.hashes and _CONDA_POST.search(one.pin)}  # fmt: skip
    if not wrong:
        return None
    right = {one: one.at(f"=={_CONDA_POST.sub('', one.pin or '')}") for one in wrong}
    changed = _replaced(found, right)
    for old, new in sorted(right.items()):
        message = f"`{old.text}` is conda's own version; `{new.text}` is PyPI's"
        changed = _noted(changed, "CONDA_VERSION", message, old.name)
    return changed


def build_limits(requirements: Iterable[Requirement]) -> tuple[str, ...]:
    """Return what those of *requirements* that are old sources are built with."""
    is_old = any(
        one.name == "pyyaml"
        and (version := flavors.public_version(one.pin))
        and version < _FIRST_PYYAML_FOR_CYTHON_3
        for one in requirements
    )
    return ("cython<3", "setuptools<66") if is_old else ()


def _constrained_builds(_: Model, found: Dependencies) -> Dependencies | None:
    limits = build_limits((*_asked(found), *found.asked.constraints))
    if not limits:
        return None
    message = f"`pyyaml` is built, where it must be, with {' and '.join(limits)}"
    return _noted(replace(found, build_constraints=limits), "BUILD_CONSTRAINED", message, "pyyaml")


def _compiled_as_wheels(_: Model, found: Dependencies) -> Dependencies | None:
    """Leave no note: it changes what is chosen, not what was asked for."""
    chosen = {one.name for one in (*_asked(found), *found.asked.constraints)
              if one.pin or one.source}  # fmt: skip
    kept = chosen | set(found.asked.options.no_binary)
    if ":all:" in kept:
        return None
    return replace(found, only_binary=tuple(one for one in _COMPILED if one not in kept))


# In this order: what is added first may be bounded after.
RULES = (
    Rule("the loader imports mlflow, and older files of conda packages do not name it",
         with_mlflow),
    Rule("a bare mlflow went back to 1.1.0 where later ones asked for too much, and that "
         "refuses the MLmodel of its successors", _bounded_mlflow),
    Rule("conda builds carry dates as post-releases that PyPI never had "
         "(setuptools==52.0.0.post20210125)", _without_conda_post),
    Rule("virtualenv seeds setuptools below Python 3.12, and mlflow before 2.16 imports its "
         "pkg_resources on any Python (mlflow#11330)", _with_setuptools),
    Rule("setuptools 82 has no pkg_resources any more", _bounded_setuptools),
    Rule("PyYAML before 6.0.1 does not build with Cython 3", _constrained_builds),
    Rule("a resolver takes numba 0.53.1's source before an older wheel, and it does not build",
         _compiled_as_wheels),
)  # fmt: skip


def _left_open(found: Dependencies, names: tuple[str, ...]) -> set[Requirement]:
    """Return the requirements of *names* for which no line of the model says a version."""
    asked = found.asked
    everything = {one for one in (*found.build, *asked.requirements) if one.name in names}
    bare = {one for one in everything if not (one.hashes or one.source or one.specifier)}
    said = {one.name for one in (*(everything - bare), *asked.constraints)}
    return {one for one in bare if one.name not in said}


def _asked(found: Dependencies) -> tuple[Requirement, ...]:
    """Return what will be asked for: overrides stand in for what they replace."""
    names = {one.name for one in found.overrides}
    return (
        *found.overrides,
        *(one for one in found.asked.requirements if one.name not in names),
    )


def _asking(found: Dependencies, requirements: tuple[Requirement, ...]) -> Dependencies:
    return replace(found, asked=replace(found.asked, requirements=requirements))


def _replaced(found: Dependencies, right: dict[Requirement, Requirement]) -> Dependencies:
    """Return *found* with the requirements that are keys of *right* replaced, everywhere."""
    asked = replace(
        found.asked,
        requirements=tuple(right.get(one, one) for one in found.asked.requirements),
        constraints=tuple(right.get(one, one) for one in found.asked.constraints),
    )
    build = tuple(right.get(one, one) for one in found.build)
    return replace(found, build=build, asked=asked)


def _noted(found: Dependencies, code: str, message: str, subject: str) -> Dependencies:
    return replace(found, notes=(*found.notes, Note(code, message, subject)))
