"""What the flavors of a model record: the versions of the libraries it was made with."""

from __future__ import annotations

from collections.abc import Mapping

from packaging.version import Version

from envd.events import Note
from envd.model import Model
from envd.model.documents import line_of
from envd.spec import requirement
from envd.spec.place import Place
from envd.spec.requirement import Requirement

# Flavor, its key, and the distribution whose version stands there, as `mlflow/<flavor>`
# writes it with `add_flavor`; some flavors are of older MLflows only.
_RECORDED = (
    ("python_function", "cloudpickle_version", "cloudpickle"),
    ("catboost", "catboost_version", "catboost"),
    ("diffusers", "diffusers_version", "diffusers"),
    ("diviner", "diviner_version", "diviner"),
    ("fastai", "fastai_version", "fastai"),
    ("gluon", "mxnet_version", "mxnet"),
    ("h2o", "h2o_version", "h2o"),
    ("johnsnowlabs", "pyspark_version", "pyspark"),
    ("keras", "keras_version", "keras"),
    ("langchain", "langchain_version", "langchain"),
    ("lightgbm", "lgb_version", "lightgbm"),
    # The version is that of `llama_index.core`, which `llama-index` need not have.
    ("llama_index", "llama_index_version", "llama-index-core"),
    ("onnx", "onnx_version", "onnx"),
    ("openai", "openai_version", "openai"),
    ("paddle", "paddle_version", "paddlepaddle"),
    ("pmdarima", "pmdarima_version", "pmdarima"),
    ("promptflow", "promptflow_version", "promptflow"),
    ("prophet", "prophet_version", "prophet"),
    ("pytorch", "pytorch_version", "torch"),
    ("sentence_transformers", "sentence_transformers_version", "sentence-transformers"),
    ("shap", "shap_version", "shap"),
    ("sklearn", "sklearn_version", "scikit-learn"),
    ("spacy", "spacy_version", "spacy"),
    ("spark", "pyspark_version", "pyspark"),
    ("statsmodels", "statsmodels_version", "statsmodels"),
    # `tf.__version__`, whatever the key says.
    ("tensorflow", "keras_version", "tensorflow"),
    ("transformers", "transformers_version", "transformers"),
    ("xgboost", "xgb_version", "xgboost"),
)


def requirements(model: Model) -> tuple[Requirement, ...]:
    """Return the requirements that the flavors of *model* record, pinned, and its mlflow.

    Nothing where nothing is recorded: a bare mlflow would load no model.
    """
    libraries = [f"{name}=={version}" for name, version in recorded(model).items()]
    mlflow = logged_with(model)
    if not libraries and not mlflow:
        return ()
    place = Place(model.path, "MLmodel", line_of(model.mlflow_version) or 1)
    texts = (*libraries, f"mlflow=={mlflow}" if mlflow else "mlflow")
    return tuple(requirement.parse(place, text) for text in texts)


def differences(model: Model, versions: Mapping[str, str]) -> tuple[Note, ...]:
    """Return a note for every library whose version among *versions* is not the recorded one."""
    return tuple(
        _difference(name, recorded, installed)
        for name, recorded in recorded(model).items()
        if (installed := public_version(versions.get(name))) and installed != recorded
    )


def logged_with(model: Model) -> Version | None:
    """Return the mlflow that wrote *model*, None where no index has it or nobody knows."""
    version = public_version(model.mlflow_version)
    return None if version is None or version.is_devrelease else version


def public_version(text: object) -> Version | None:
    """Return the version *text* is without its local part, None where it is none."""
    if not isinstance(text, str):
        return None
    try:
        return Version(Version(text).public)
    except ValueError:  # not InvalidVersion alone: `int` refuses 5,000 digits
        return None


def _difference(name: str, recorded: Version, installed: Version) -> Note:
    message = f"the model was made with {name} {recorded}; the environment has {installed}"
    return Note("VERSION_DIFFERS", message, name)


def recorded(model: Model) -> dict[str, Version]:
    """Return the version of every distribution that the flavors name, the first of several."""
    found: dict[str, Version] = {}
    for flavor, key, name in _RECORDED:
        about = model.flavors.get(flavor)
        if not isinstance(about, dict) or _is_bundled(flavor, about):
            continue
        if version := public_version(about.get(key)):
            # MLflow strips it too: Databricks calls its PySpark 3.3.2 `3.3.2.dev0`.
            found.setdefault(name, Version(version.base_version) if version.is_devrelease
                             else version)  # fmt: skip
    return found


def _is_bundled(flavor: str, recorded: Mapping[str, object]) -> bool:
    """Whether the keras is TensorFlow's own, whose version no distribution has."""
    module = recorded.get("keras_module")
    return flavor == "keras" and isinstance(module, str) and module.startswith("tensorflow")
