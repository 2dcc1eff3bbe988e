"""Takes conda-forge in the place of Anaconda's own channels, before anything is hashed.

Anaconda's terms of service bind who fetches from them, and a model that was logged years ago
names them all the same; conda-forge has the same packages under the same versions, but in
other builds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from envd.errors import PolicyDeniedError
from envd.events import Note
from envd.model.texts import shown
from envd.spec.channels import CONDA_FORGE, DEFAULTS, Channel, expanded, is_anaconda
from envd.spec.conda_yaml import CondaYaml
from envd.spec.match_spec import MatchSpec
from envd.spec.place import Place

# Nobody writes these by hand.
_ONLY_EXPORTED = ("_libgcc_mutex", "_openmp_mutex", "ld_impl_")
# What a compiler, a Python or a NumPy brings with it, on any system. An export pins what
# Anaconda's builds were made against; conda-forge's were made against other versions, often
# of packages cut in another way (`libgcc-ng` and `libgcc`, `zlib` and `libzlib`), and the
# solver adds what they need. What a model itself may use (`hdf5`, `cudatoolkit`) is kept.
_RUNTIME = {
    "_libgcc_mutex", "_openmp_mutex", "blas", "bzip2", "ca-certificates", "expat", "icc_rt",
    "intel-openmp", "libblas", "libcblas", "libcxx", "libcxxabi", "libedit", "libexpat", "libffi",
    "libgcc", "libgcc-ng", "libgfortran", "libgfortran-ng", "libgfortran4", "libgfortran5",
    "libgomp", "liblapack", "liblzma", "libmpdec", "libnsl", "libopenblas", "libsqlite",
    "libstdcxx", "libstdcxx-ng", "libuuid", "libxcrypt", "libzlib", "llvm-openmp", "mkl",
    "ncurses", "openssl", "python_abi", "readline", "sqlite", "tbb", "tk", "tzdata", "ucrt", "vc",
    "vc14_runtime", "vs2015_runtime", "xz", "zlib",
}  # fmt: skip


def rewritten(found: CondaYaml, rule: Literal["rewrite", "warn", "deny"]) -> CondaYaml:
    """Return *found* with what the setting `conda.defaults` makes of Anaconda's own channels.

    No channel at all means `defaults`, as to conda. `rewrite` puts conda-forge in their place
    and takes off what only Anaconda's builds have, with a note for each change; `warn` leaves
    them, with a note for each. `nodefaults` and what stands there twice goes in any case.

    Raises:
        PolicyDeniedError: *rule* is `deny`, and there is one.
    """
    meant = _explicit(found)
    called = {one: f"`{one.name}`" for one in meant.places() if is_anaconda(one)}
    if not called:
        return meant
    if not found.channels:
        called[DEFAULTS] = "`defaults`, which is meant where no channel is named"
    if rule == "deny":
        channel, what = next(iter(called.items()))
        raise _denied(meant.places()[channel], what)
    if rule == "warn":
        said = "packages come from Anaconda's own channel {}"
        return _kept(_noted(meant, called, "CHANNEL_OF_ANACONDA", said))
    said = "packages come from conda-forge in the place of {}"
    return _moved(_noted(meant, called, "CHANNEL_REWRITTEN", said))


def _explicit(found: CondaYaml) -> CondaYaml:
    channels = [one for one in found.channels if one[1].name != "nodefaults"]
    if not channels:
        channels = [(found.place, CONDA_FORGE if found.channels else DEFAULTS)]
    return replace(found, channels=_once(channels))


def _once(channels: Iterable[tuple[Place, Channel]]) -> tuple[tuple[Place, Channel], ...]:
    seen: dict[Channel, Place] = {}
    for place, one in channels:
        seen.setdefault(one, place)
    return tuple((place, one) for one, place in seen.items())


def _noted(found: CondaYaml, called: Mapping[Channel, str], code: str, said: str) -> CondaYaml:
    notes = (Note(code, said.format(what), one.name) for one, what in called.items())
    return replace(found, notes=(*found.notes, *notes))


def _kept(found: CondaYaml) -> CondaYaml:
    """Spell `defaults` out: only conda knows what it stands for."""
    channels = [(place, each) for place, one in found.channels for each in expanded(one)]
    packages = tuple(
        (place, replace(one, channel=expanded(one.channel)[0]) if one.channel else one)
        for place, one in found.packages
    )
    return replace(found, channels=_once(channels), packages=packages)


def _moved(found: CondaYaml) -> CondaYaml:
    in_list = any(is_anaconda(one) for _, one in found.channels)
    channels = [(place, CONDA_FORGE if is_anaconda(one) else one) for place, one in found.channels]
    is_export = _is_export([one for _, one in found.packages])
    packages, notes = [], []
    for place, one in found.packages:
        if not (is_anaconda(one.channel) if one.channel else in_list):
            packages.append((place, one))
        elif is_export and one.version and _is_runtime(one.name):
            notes.append(_pin_dropped(one))
        else:
            moved = replace(one, channel=one.channel and CONDA_FORGE).of_any_build()
            packages.append((place, moved))
            notes += _build_dropped(one)
    return replace(
        found,
        channels=_once(channels),
        packages=tuple(packages),
        notes=(*found.notes, *notes),
    )


def _is_export(packages: Sequence[MatchSpec]) -> bool:
    """Whether `conda env export` wrote it: most have a build, or there is what nobody asks for."""
    builds = sum(one.names_a_build for one in packages)
    return 2 * builds > len(packages) or any(
        one.name.startswith(_ONLY_EXPORTED) for one in packages
    )


def _is_runtime(name: str) -> bool:
    return name in _RUNTIME or name.startswith("ld_impl_")


def _pin_dropped(one: MatchSpec) -> Note:
    message = f"`{shown(one.text)}`, which an export pins, is left to what needs it on conda-forge"
    return Note("PIN_DROPPED", message, one.name)


def _build_dropped(one: MatchSpec) -> list[Note]:
    if one == one.of_any_build():
        return []
    message = f"`{shown(one.text)}` asks for a build of Anaconda's; any other of it is taken"
    return [Note("BUILD_DROPPED", message, one.name)]


def _denied(place: Place, what: str) -> PolicyDeniedError:
    message = (
        f"{place.where()}: packages come from Anaconda's own channel {what}, which is not allowed "
        "here; name conda-forge in its place, or set `conda.defaults` (ENVD_CONDA__DEFAULTS) to "
        "`rewrite`"
    )
    return PolicyDeniedError(
        message, model=place.model, path=place.file, line=place.line, setting="conda.defaults"
    )
