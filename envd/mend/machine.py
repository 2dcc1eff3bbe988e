"""Tells failures that come of the machine: libraries, a GPU, Java, files, the network."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from envd.mend.failures import About, Diagnosis, Failure

_TABLE = Path(__file__).with_name("libraries.txt")
_LIBRARY = re.compile(
    r"(?<![\w.+-])(?P<a>lib[\w.+-]{1,200}): cannot open shared object file"
    r"|cannot load library '(?P<b>[^']+)'"
    r'|no library called "(?P<c>[^"]+)" was found'
    r"|[Uu]nable to find (?P<d>\w+) shared library"
    r"|failed to find (?P<e>lib\w+)"
    r"|(?P<f>[Pp]ort[Aa]udio) library not found"
    r"|could not find or load (?P<g>\w+) library"
)
_GPU_LIBRARY = re.compile(
    r"lib(cuda|cudart|cublas|cudnn|cufft|curand|cusparse|nvrtc|nvinfer|nccl|nv)\w*"
)
_GPU = re.compile(
    r"Attempting to deserialize object on a CUDA device|Found no NVIDIA driver"
    r"|no CUDA-capable device|CUDA driver (version|initialization)|CUDA error"
    r"|Torch not compiled with CUDA enabled|CUDA_ERROR_\w+|CUDARuntimeError|HIP error"
)
_SYMBOLS = re.compile(r"version `(?P<name>(GLIBC|GLIBCXX|CXXABI)_[\d.]+)' not found")
_JAVA = re.compile(
    r"JAVA_HOME is not set|Java gateway process exited|Unable to locate a Java"
    r"|No such file or directory: '?java\b|JVMNotFoundException|Cannot find Java"
)
_FILE = re.compile(r"No such file or directory: '(?P<path>[^']+)'")
_NETWORK = re.compile(
    r"Name or service not known|Temporary failure in name resolution|Network is unreachable"
    r"|Max retries exceeded|couldn't connect to 'https?://|getaddrinfo failed|Connection refused"
)
_DATA = re.compile(
    r"\[E050\] Can't find model '(?P<spacy>[\w-]+)'|Resource (?P<nltk>[\w-]+) not found"
)
_STYLE = re.compile(r"\x1b\[[\d;]*m")
_VARIABLE = re.compile(r"KeyError: '(?P<name>[A-Z][A-Z0-9_]+)'\s*$")
_ILLEGAL = "SIGILL"


def package_of(library: str) -> str:
    """Return the Debian package that has *library*, empty where that is not known."""
    return _packages().get(library, "")


@cache
def _packages() -> dict[str, str]:
    lines = (one.split() for one in _TABLE.read_text().splitlines() if one[:1] not in {"", "#"})
    return dict(lines)


def _gpu(failure: Failure, _: About) -> Diagnosis | None:
    found = _GPU.search(failure.text)
    library = _LIBRARY.search(failure.text)
    name = library["a"] or "" if library else ""
    if not found and not _GPU_LIBRARY.match(name):
        return None
    message = f"it wants a GPU, and there is none that it can use: {found[0] if found else name}"
    advice = (
        "give the model one (`gpu` in `[models.NAME]`, the driver on this machine), or log it "
        "for the CPU (`map_location='cpu'`)"
    )
    return Diagnosis("GPU_MISSING", message, advice, name or "CUDA")


def _library(failure: Failure, _: About) -> Diagnosis | None:
    found = _LIBRARY.search(failure.text)
    if not found:
        return None
    name = next(one for one in found.groups() if one)
    package = package_of(name) or package_of(name.lower()) or package_of(f"lib{name}")
    advice = (
        f"install it on this machine (Debian: `apt-get install {package}`)"
        if package
        else ("install what has it on this machine (Debian: `apt-file search` finds the package)")
    )
    if name.startswith(("libGL", "libgthread", "libSM")) and "cv2" in failure.text:
        advice += "; `opencv-python-headless` in the place of `opencv-python` does without"
    message = f"the library `{name}`, which is no Python package, is not on this machine"
    return Diagnosis("LIBRARY_MISSING", message, advice, name)


def _symbols(failure: Failure, _: About) -> Diagnosis | None:
    found = _SYMBOLS.search(failure.text)
    if not found:
        return None
    message = f"a package was compiled for a newer system than this: `{found['name']}` is not here"
    advice = "run it on a newer system, or ask for an older version of that package"
    return Diagnosis("SYSTEM_TOO_OLD", message, advice, found["name"])


def _processor(failure: Failure, _: About) -> Diagnosis | None:
    if failure.reason != "WORKER_DIED" or _ILLEGAL not in failure.message:
        return None
    message = "a package was compiled for a newer processor than this machine's"
    advice = "ask for a version of it that does without AVX, or run it elsewhere"
    return Diagnosis("PROCESSOR_TOO_OLD", message, advice, _ILLEGAL)


def _java(failure: Failure, _: About) -> Diagnosis | None:
    if not _JAVA.search(failure.text):
        return None
    message = "it wants Java, and there is none that it can use"
    advice = (
        "install it on this machine (Debian: `apt-get install default-jre-headless`) and give "
        "the model JAVA_HOME (`env` in `[models.NAME]`)"
    )
    return Diagnosis("JAVA_MISSING", message, advice, "java")


def _data(failure: Failure, _: About) -> Diagnosis | None:
    found = _DATA.search(_STYLE.sub("", failure.text))
    if not found:
        return None
    name = found["spacy"] or found["nltk"]
    message = f"it wants the data `{name}`, which comes with no distribution it asks for"
    how = f"log it with the wheel of `{name}`" if found["spacy"] else "log it as an artifact"
    return Diagnosis("DATA_MISSING", message, how, name)


def _file(failure: Failure, about: About) -> Diagnosis | None:
    found = _FILE.search(failure.message)
    if not found or failure.exception not in {"FileNotFoundError", "OSError", ""}:
        return None
    path = found["path"]
    if about.path and path.startswith(f"{about.path}/"):
        message = f"it is not whole: its own file `{path}` is not there"
        advice = "copy the model again, with all that lies in it, or save it anew"
    else:
        message = f"it reads the file `{path}`, which is not here"
        advice = "log it with the model (`artifacts`), and read it from there (`context.artifacts`)"
    return Diagnosis("FILE_MISSING", message, advice, path)


def _network(failure: Failure, _: About) -> Diagnosis | None:
    found = _NETWORK.search(failure.text)
    if not found:
        return None
    message = f"it asks the network, and gets no answer: {found[0]}"
    advice = (
        "log what it fetches with the model (`artifacts`), or let it (`network = true` in "
        "`[models.NAME]`, where a sandbox keeps it from that)"
    )
    return Diagnosis("NETWORK_MISSING", message, advice)


def _variable(failure: Failure, _: About) -> Diagnosis | None:
    found = _VARIABLE.search(failure.traceback)
    if not found or "environ" not in failure.traceback:
        return None
    name = found["name"]
    message = f"it reads the variable `{name}`, which nobody gives it"
    advice = "give it in `env` or `env_file` of a table `[models.NAME]` of the settings"
    return Diagnosis("VARIABLE_MISSING", message, advice, name)


RULES = (_gpu, _library, _symbols, _processor, _java, _data, _file, _network, _variable)
