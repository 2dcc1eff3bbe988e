"""Tells failures that come of another version: of Python, of NumPy, of what a model pickled."""

from __future__ import annotations

import re

from envd.mend.failures import About, Diagnosis, Failure
from envd.modules import distribution_of

# Of another minor version's bytecode, which cloudpickle keeps in what it pickles.
_BYTECODE = re.compile(
    r"bad marshal data|unknown opcode|unsupported pickle protocol: \d"
    r"|code\(\) (takes|argument \d+ must)|code expected at (most|least)"
    r"|an integer is required \(got type bytes\)"
)
_SYNTAX = re.compile(
    r'File "(?P<file>[^"]+)", line (?P<line>\d+)\n.*?\n?SyntaxError: (?P<why>.*)', re.DOTALL
)
# Modules of the standard library, and the versions of Python that have them.
SINCE = {"tomllib": "3.11", "graphlib": "3.9", "zoneinfo": "3.9"}
UNTIL = {
    "_bootlocale": "3.9", "asynchat": "3.11", "asyncore": "3.11", "binhex": "3.10", "cgi": "3.12",
    "distutils": "3.11", "formatter": "3.9", "imghdr": "3.12", "imp": "3.11", "parser": "3.9",
    "pipes": "3.12", "smtpd": "3.11", "symbol": "3.9", "telnetlib": "3.12",
}  # fmt: skip
_OLD_COLLECTIONS = re.compile(
    r"cannot import name '\w+' from 'collections'|module 'collections' has no"
)
_NUMPY_1_BUILD = re.compile(
    r"numpy\.(dtype|ndarray|ufunc) size changed|_ARRAY_API not found"
    r"|compiled using NumPy 1\.x cannot be run"
    r"|numpy\.core\.(multiarray|umath) failed to import"
)
_NEWER_NUMPY = re.compile(
    r"No module named '?numpy\._core"
    r"|compiled against (ABI|API) version \S+ but this version of numpy"
)
# What went from where, with a text that says so, and the requirement that has it still.
_GONE = (
    (r"module 'numpy' has no attribute '(float|int|bool|object|str|complex)'", "numpy<1.24"),
    (r"`?np\.\w+`? was removed in the NumPy 2\.0 release", "numpy<2"),
    (r"module 'numpy' has no attribute '(Inf|NaN|infty|float_|unicode_|string_)'", "numpy<2"),
    (r"cannot import name '(escape|Markup|contextfilter)' from 'jinja2", "jinja2<3.1"),
    (r"cannot import name 'soft_unicode' from 'markupsafe", "markupsafe<2.1"),
    (r"cannot import name 'json' from 'itsdangerous", "itsdangerous<2.1"),
    (r"cannot import name 'url_(quote|decode|encode|parse)' from 'werkzeug", "werkzeug<3"),
    (r"cannot import name '_request_ctx_stack' from 'flask", "flask<2.3"),
    (r"Descriptors cannot (not )?be created directly", "protobuf<3.21"),
    (r"No module named '?pkg_resources", "setuptools<81"),
    (r"No module named '?pandas\.core\.indexes\.numeric", "pandas<2"),
)
_GONE_RULES = tuple((re.compile(text), requirement) for text, requirement in _GONE)
_ATTRIBUTE = re.compile(r"Can't get attribute '(?P<name>[^']+)' on <module '(?P<module>[^']+)'")
_NAME = re.compile(r"cannot import name '(?P<name>[^']+)' from '(?P<module>[^']+)'")
_CLOUDPICKLE = re.compile(r"Can't get attribute '\w+' on <module 'cloudpickle")
_OF_OBJECT = re.compile(r"'(?P<name>\w+)' object has no attribute '(?P<attribute>\w+)'")


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _other_python(failure: Failure, about: About) -> Diagnosis | None:
    here, there = _minor(about.python), _minor(about.logged)
    module = failure.missing.partition(".")[0]
    if module in SINCE or module in UNTIL:
        have = f"{SINCE[module]} and later" if module in SINCE else f"up to {UNTIL[module]}"
        message = f"`{module}` is a module of Python {have}, and this is {here}"
        return Diagnosis("PYTHON_DIFFERS", message, _python_advice(here, there), module)
    if _OLD_COLLECTIONS.search(failure.text):
        message = f"what it imports is older than Python 3.10, and this is {here}"
        return Diagnosis("PYTHON_DIFFERS", message, _python_advice(here, there), "collections")
    if found := _SYNTAX.search(failure.traceback):
        message = (
            f"`{found['file']}`, line {found['line']}, is no Python {here}: {found['why'].strip()}"
        )
        return Diagnosis("PYTHON_DIFFERS", message, _python_advice(here, there), found["file"])
    has_crashed = failure.reason == "WORKER_DIED" and "SIGSEGV" in failure.message
    if _BYTECODE.search(failure.text) or (has_crashed and there and here != there):
        made = f"made by Python {there}" if there and there != here else "made by another Python"
        message = f"the model holds code {made}, which Python {here} does not read"
        return Diagnosis("PYTHON_DIFFERS", message, _python_advice(here, there), f"python {there}")
    return None


def _python_advice(here: str, there: str) -> str:
    if there and here != there:
        return (
            f"it was logged with Python {there}: name that in its `python_env.yaml` and "
            "`conda.yaml`, or log it again"
        )
    return "name the Python it was made with in its `python_env.yaml` and `conda.yaml`"


def _binary(failure: Failure, about: About) -> Diagnosis | None:
    numpy = about.version("numpy")
    if _NEWER_NUMPY.search(failure.text) and numpy.startswith("1."):
        message = f"it was made with NumPy 2, and the environment has {numpy}"
        remedy = about.wanted("numpy") or "numpy>=2"
        return Diagnosis("NUMPY_DIFFERS", message, f"ask for `{remedy}`", "numpy", remedy)
    if not _NUMPY_1_BUILD.search(failure.text):
        return None
    if numpy.startswith("1."):
        message = f"a package was compiled for another NumPy than {numpy}, which is installed"
        advice = "let the versions of both fit: those that the model was made with do"
        return Diagnosis("NUMPY_DIFFERS", message, advice, "numpy", about.wanted("numpy"))
    message = f"a package was compiled for NumPy 1, and the environment has {numpy or 'another'}"
    return Diagnosis("NUMPY_DIFFERS", message, "ask for `numpy<2`", "numpy", "numpy<2")


def _gone(failure: Failure, _: About) -> Diagnosis | None:
    for pattern, remedy in _GONE_RULES:
        if found := pattern.search(failure.text):
            name = re.split(r"[<>=]", remedy)[0]
            message = f"a newer `{name}` is installed than it can do with: {found[0]}"
            return Diagnosis("VERSION_DIFFERS", message, f"ask for `{remedy}`", name, remedy)
    return None


def _pickled(failure: Failure, about: About) -> Diagnosis | None:
    """Tell what a library has no more, or not yet, of what a pickle names."""
    found = _ATTRIBUTE.search(failure.text) or _NAME.search(failure.text)
    if _CLOUDPICKLE.search(failure.text):
        return _of_version("cloudpickle", "the model was pickled by another cloudpickle", about)
    if found and found["module"] == "__main__":
        message = f"`{found['name']}` was defined in the script or notebook that made the model"
        advice = (
            "define it in a module of its own and log that with `code_paths`, or pickle the "
            "model with cloudpickle"
        )
        return Diagnosis("CODE_MISSING", message, advice, f"__main__.{found['name']}")
    if found:
        return _lacks(found["module"], found["name"], about)
    if failure.missing and (name := distribution_of(failure.missing)) and about.version(name):
        return _of_version(name, f"its `{name}` has no module `{failure.missing}`", about)
    return _of_object(failure, about)


def _lacks(module: str, name: str, about: About) -> Diagnosis | None:
    library = distribution_of(module) or module.partition(".")[0]
    if about.version(library):
        return _of_version(library, f"its `{library}` has no `{name}` in `{module}`", about)
    if about.code:
        message = f"`{module}` in the model's own code has no `{name}`"
        advice = "log the model again with the code it was made with (`code_paths`)"
        return Diagnosis("CODE_MISSING", message, advice, module)
    return None


def _of_object(failure: Failure, about: About) -> Diagnosis | None:
    found = _OF_OBJECT.search(failure.message)
    place = re.findall(r"/site-packages/(\w+)/", failure.importer)
    name = distribution_of(place[-1]) if place else None
    if not found or not name or not about.wanted(name):
        return None
    what = f"what it pickled of `{name}` lacks `{found['attribute']}`"
    return _of_version(name, what, about)


def _of_version(name: str, what: str, about: About) -> Diagnosis:
    remedy = about.wanted(name)
    installed = about.version(name)
    message = f"{what}: the environment has {name} {installed or 'in another version'}"
    if remedy:
        advice = f"it was made with another: ask for `{remedy}`"
    else:
        advice = f"ask for the version of `{name}` that it was made with"
    return Diagnosis("VERSION_DIFFERS", message, advice, name, remedy)


RULES = (_binary, _gone, _other_python, _pickled)
