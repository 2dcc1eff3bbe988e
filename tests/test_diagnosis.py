"""What a failure comes from, told from what the worker said of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from envd.errors import ImportFailedError, ModelRaisedError, WorkerDiedError
from envd.mend import machine
from envd.mend.diagnosis import diagnose
from envd.mend.failures import About, Diagnosis, Failure

SITE = "/r/environments/0a/1/lib/python3.11/site-packages"
ABOUT = About(
    installed={"scikit-learn": "1.5.2", "numpy": "2.1.3", "pandas": "2.2.3", "protobuf": "5.28.3",
               "jinja2": "3.1.4", "cloudpickle": "3.1.0"},
    recorded={"scikit-learn": "1.2.2", "cloudpickle": "3.1", "mlflow": "2.9.2"},
    python="3.11.7",
    logged="3.9.18",
    loader="mlflow.sklearn",
    code="code",
)  # fmt: skip


def failure(
    text: str,
    exception: str = "",
    *,
    stage: str = "load",
    file: str = f"{SITE}/joblib/numpy_pickle.py",
) -> Failure:
    """Return what the worker says where *text* was raised in *file*."""
    trace = f'Traceback:\n  File "{file}", line 1, in f\n    x\n{exception}: {text}'
    reason = "MODEL_INVALID" if stage == "load" else "MODEL_RAISED"
    return Failure(reason, f"the model raised: {text}", stage, "", exception, trace)


# What was raised, and the code, the subject and the remedy of what it comes from.
RAISED = [
    ("libGL.so.1: cannot open shared object file: No such file or directory", "ImportError",
     "LIBRARY_MISSING", "libGL.so.1", ""),
    ("Unable to find zbar shared library", "ImportError", "LIBRARY_MISSING", "zbar", ""),
    ("failed to find libmagic.  Check your installation", "ImportError",
     "LIBRARY_MISSING", "libmagic", ""),
    ('no library called "cairo-2" was found', "OSError", "LIBRARY_MISSING", "cairo-2", ""),
    ("cannot load library 'libsndfile.so': libsndfile.so: cannot open shared object file",
     "OSError", "LIBRARY_MISSING", "libsndfile.so", ""),
    ("libcudart.so.11.0: cannot open shared object file: No such file or directory",
     "ImportError", "GPU_MISSING", "libcudart.so.11.0", ""),
    ("Attempting to deserialize object on a CUDA device but torch.cuda.is_available() is False.",
     "RuntimeError", "GPU_MISSING", "CUDA", ""),
    ("Found no NVIDIA driver on your system.", "RuntimeError", "GPU_MISSING", "CUDA", ""),
    ("/lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required by x.so)",
     "ImportError", "SYSTEM_TOO_OLD", "GLIBC_2.38", ""),
    ("Java gateway process exited before sending its port number", "RuntimeError",
     "JAVA_MISSING", "java", ""),
    ("[Errno 2] No such file or directory: '/home/me/train.csv'", "FileNotFoundError",
     "FILE_MISSING", "/home/me/train.csv", ""),
    ("[E050] Can't find model 'en_core_web_sm'. It doesn't seem to be a Python package",
     "OSError", "DATA_MISSING", "en_core_web_sm", ""),
    ("[Errno -3] Temporary failure in name resolution", "gaierror", "NETWORK_MISSING", "", ""),
    ("numpy.dtype size changed, may indicate binary incompatibility.", "ValueError",
      "NUMPY_DIFFERS", "numpy", "numpy<2"),
    ("_ARRAY_API not found", "AttributeError", "NUMPY_DIFFERS", "numpy", "numpy<2"),
    ("numpy.core.multiarray failed to import", "ImportError", "NUMPY_DIFFERS", "numpy", "numpy<2"),
    ("`np.Inf` was removed in the NumPy 2.0 release. Use `np.inf` instead.", "AttributeError",
     "VERSION_DIFFERS", "numpy", "numpy<2"),
    ("module 'numpy' has no attribute 'float'", "AttributeError",
     "VERSION_DIFFERS", "numpy", "numpy<1.24"),
    ("cannot import name 'escape' from 'jinja2' (/x/jinja2/__init__.py)", "ImportError",
     "VERSION_DIFFERS", "jinja2", "jinja2<3.1"),
    ("Descriptors cannot be created directly.", "TypeError",
     "VERSION_DIFFERS", "protobuf", "protobuf<3.21"),
    ("No module named 'pkg_resources'", "ModuleNotFoundError",
     "VERSION_DIFFERS", "setuptools", "setuptools<81"),
    ("Can't get attribute 'LossFunction' on <module 'sklearn.ensemble._gb' from '/x'>",
     "AttributeError", "VERSION_DIFFERS", "scikit-learn", "scikit-learn==1.2.2"),
    ("No module named 'sklearn.ensemble._gb_losses'", "ModuleNotFoundError",
     "VERSION_DIFFERS", "scikit-learn", "scikit-learn==1.2.2"),
    ("cannot import name 'Int64Index' from 'pandas' (/x)", "ImportError",
     "VERSION_DIFFERS", "pandas", ""),
    ("Can't get attribute 'Scaler' on <module '__main__' (built-in)>", "AttributeError",
     "CODE_MISSING", "__main__.Scaler", ""),
    ("Can't get attribute 'Scaler' on <module 'features' from '/m/code/features.py'>",
     "AttributeError", "CODE_MISSING", "features", ""),
    ("code() argument 13 must be str, not int", "TypeError", "PYTHON_DIFFERS", "python 3.9", ""),
    ("code expected at most 16 arguments, got 18", "TypeError",
     "PYTHON_DIFFERS", "python 3.9", ""),
    ("bad marshal data (unknown type code)", "ValueError", "PYTHON_DIFFERS", "python 3.9", ""),
    ("unsupported pickle protocol: 5", "ValueError", "PYTHON_DIFFERS", "python 3.9", ""),
    ("No module named 'distutils'", "ModuleNotFoundError", "PYTHON_DIFFERS", "distutils", ""),
    ("cannot import name 'Mapping' from 'collections' (/x)", "ImportError",
     "PYTHON_DIFFERS", "collections", ""),
    ("No module named 'google.cloud.storage'", "ModuleNotFoundError",
     "MODULE_MISSING", "google.cloud.storage", "google-cloud-storage"),
    ("the model is wrong", "ValueError", "MODEL_FAILS", "ValueError", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "exception", "code", "subject", "remedy"), RAISED)
def test_what_was_raised_tells_what_it_comes_from(
    text: str, exception: str, code: str, subject: str, remedy: str
) -> None:
    found = diagnose(failure(text, exception), ABOUT)

    assert (found.code, found.subject, found.remedy) == (code, subject, remedy)
    assert found.message
    assert found.advice


def import_failed(module: str, file: str, stage: str | None = None) -> Failure:
    trace = (
        f'Traceback:\n  File "{file}", line 3, in f\n  File "<frozen importlib._bootstrap>", '
        f"line 1140, in _find_and_load_unlocked\nModuleNotFoundError: No module named '{module}'"
    )
    top = module.partition(".")[0]
    return Failure.of(
        ImportFailedError(f"it imports `{top}`", module=top, traceback=trace, stage=stage)
    )


# Who imports what, and what comes of that.
IMPORTS = [
    ("bs4", "/m/code/model.py", None, "MODULE_MISSING", "beautifulsoup4"),
    ("google.oauth2", "/m/code/model.py", "load", "MODULE_MISSING", "google-auth"),
    ("pdfminer.high_level", "/m/code/model.py", "load", "MODULE_MISSING", ""),
    ("features", "/m/code/model.py", "load", "CODE_MISSING", ""),
    ("features", f"{SITE}/joblib/numpy_pickle.py", "load", "CODE_MISSING", ""),
    ("features", f"{SITE}/cloudpickle/cloudpickle.py", "load", "CODE_MISSING", ""),
    ("unheard_of", f"{SITE}/odd/reader.py", None, "MODULE_MISSING", ""),
    ("mlflow.sklearn", "/x", "load", "MODULE_MISSING", "mlflow==2.9.2"),
]


@pytest.mark.parametrize(("module", "file", "stage", "code", "remedy"), IMPORTS)
def test_a_missing_module_is_a_distributions_or_the_models_own(
    module: str, file: str, stage: str | None, code: str, remedy: str
) -> None:
    found = diagnose(import_failed(module, file, stage), ABOUT)

    assert (found.code, found.remedy) == (code, remedy)
    assert found.subject == module


def test_a_loader_that_no_distribution_brings_is_the_models_own() -> None:
    found = diagnose(import_failed("my_loader", "/x", "load"), About(loader="my_loader.sub"))

    assert (found.code, found.subject) == ("CODE_MISSING", "my_loader")


def test_of_several_distributions_that_bring_a_module_none_is_taken() -> None:
    found = diagnose(import_failed("pdfminer", "/m/code/model.py"), ABOUT)

    assert found.candidates == ("pdfminer.six", "pdfminer")
    assert found.remedy == ""


def test_syntax_of_another_python_is_named_with_its_place() -> None:
    trace = (
        'Traceback:\n  File "/x", line 9, in f\n  File "/m/code/model.py", line 4\n'
        "    match x:\n          ^\nSyntaxError: invalid syntax\n"
    )
    found = diagnose(Failure("MODEL_INVALID", "no", "load", "", "SyntaxError", trace), ABOUT)

    assert found.code == "PYTHON_DIFFERS"
    assert found.message.startswith("`/m/code/model.py`, line 4, is no Python 3.11: invalid")
    assert "logged with Python 3.9" in found.advice


def test_a_variable_that_nobody_gives_is_named() -> None:
    trace = (
        "Traceback:\n  File \"/m/a.py\", line 1, in f\n    os.environ['TOKEN']\nKeyError: 'TOKEN'"
    )
    found = diagnose(Failure("MODEL_RAISED", "no", "", "", "KeyError", trace), ABOUT)

    assert (found.code, found.subject) == ("VARIABLE_MISSING", "TOKEN")


def test_numpy_1_is_too_old_for_what_numpy_2_pickled() -> None:
    old = About(installed={"numpy": "1.26.4"}, recorded={"numpy": "2.1"})
    text = "No module named 'numpy._core'"

    assert diagnose(failure(text, "ModuleNotFoundError"), old).remedy == "numpy==2.1"
    assert diagnose(failure(text, "ModuleNotFoundError"), About(old.installed)).remedy == "numpy>=2"


def test_a_version_that_is_written_otherwise_is_the_same() -> None:
    about = About({"scikit-learn": "1.3.0"}, {"scikit-learn": "1.3"})
    text = "Can't get attribute 'x' on <module 'sklearn.tree' from '/x'>"

    assert diagnose(failure(text, "AttributeError"), about).remedy == ""


def test_a_version_of_condas_is_the_one_it_begins_with() -> None:
    about = About({"scikit-learn": "1.3.2w"}, {"scikit-learn": "1.3"})
    text = "Can't get attribute 'x' on <module 'sklearn.tree' from '/x'>"

    assert diagnose(failure(text, "AttributeError"), about).remedy == "scikit-learn==1.3"
    same = About({"scikit-learn": "1.3w"}, about.recorded)
    assert diagnose(failure(text, "AttributeError"), same).remedy == ""


def test_a_file_of_the_models_own_is_no_artifact_to_log() -> None:
    def found(path: str) -> Diagnosis:
        text = f"[Errno 2] No such file or directory: '{path}'"
        return diagnose(failure(text, "FileNotFoundError"), About(path="/m"))

    own, other = found("/m/model.pkl"), found("/mine/model.pkl")

    assert (own.code, own.subject) == ("FILE_MISSING", "/m/model.pkl")
    assert "not whole" in own.message
    assert "copy the model again" in own.advice
    assert "artifacts" in other.advice


def test_a_processor_that_is_too_old_kills_the_worker() -> None:
    error = WorkerDiedError("the worker ended by signal SIGILL", stage="load", cause="SIGILL")

    assert diagnose(Failure.of(error), About()).code == "PROCESSOR_TOO_OLD"


def test_what_a_model_says_is_not_taken_for_what_it_lacks() -> None:
    error = ModelRaisedError(
        "it raised ValueError: No module named 'torch'", exception="ValueError"
    )

    assert diagnose(Failure.of(error), About()) == Diagnosis(
        "MODEL_FAILS", error.message, "what it raised when it was asked is all that is known",
        "ValueError",
    )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["lib.so" * 90_000, "lib" * 90_000, 'File "a", line 1\nSyntaxErro' * 9_999, "'a" * 90_000,
     "\x1b[;" * 90_000, "No module named 'a" * 90_000, "cannot load library '" * 90_000],
)  # fmt: skip
@pytest.mark.timeout(20)
def test_a_model_that_says_very_much_holds_nobody_up(text: str) -> None:
    error = ModelRaisedError(text, traceback=text, exception="ImportError")

    # The daemon does this, too.
    assert diagnose(Failure.of(error), ABOUT).code


def test_libraries_are_named_once_with_a_package() -> None:
    text = machine._TABLE.read_text()
    lines = [one.split() for one in text.splitlines() if one and not one.startswith("#")]

    assert all(len(one) == 2 for one in lines)
    assert len({name for name, _ in lines}) == len(lines) > 60
    assert machine.package_of("libGL.so.1") == "libgl1"
    assert machine.package_of("libheard.so.1") == ""


def test_the_page_says_what_each_code_means() -> None:
    folder = Path(machine.__file__).parent
    sources = "".join(one.read_text() for one in folder.glob("*.py"))
    codes = set(re.findall(r'Diagnosis\(\s*"([A-Z_]+)"', sources))
    page = (folder.parent.parent / "docs" / "dependencies.md").read_text()

    assert len(codes) > 15
    assert [one for one in sorted(codes) if f"`{one}`" not in page] == []
