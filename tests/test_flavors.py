"""What flavors record of the libraries a model was made with."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from envd import config
from envd.errors import ModelInvalidError
from envd.events import Note
from envd.model import Model
from envd.model import read as read_model
from envd.model.documents import Document
from envd.spec import flavors, read

# As `mlflow.sklearn` of MLflow 2.9.2 wrote it.
SKLEARN = """\
flavors:
  python_function:
    loader_module: mlflow.sklearn
    python_version: 3.9.18
  sklearn:
    pickled_model: model.pkl
    serialization_format: cloudpickle
    sklearn_version: 1.3.2
mlflow_version: 2.9.2
utc_time_created: '2024-01-11 05:56:49.992931'
"""


def model(folder: Path, mlflow_version: str | None = None, **recorded: Document) -> Model:
    """Return a model with the flavors *recorded* beside its python_function."""
    (folder / "MLmodel").write_text("flavors: {python_function: {loader_module: mlflow.sklearn}}")
    found = read_model(folder)
    return replace(found, mlflow_version=mlflow_version, flavors=found.flavors | recorded)


def texts(found: Model) -> list[str]:
    return [one.text for one in flavors.requirements(found)]


def sklearn(version: Document) -> dict[str, Document]:
    return {"sklearn_version": version}


@pytest.mark.parametrize(
    ("flavor", "key", "distribution"),
    [
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
        ("tensorflow", "keras_version", "tensorflow"),
        ("transformers", "transformers_version", "transformers"),
        ("xgboost", "xgb_version", "xgboost"),
    ],
)
def test_a_flavor_pins_the_library_whose_version_it_records(
    tmp_path: Path, flavor: str, key: str, distribution: str
) -> None:
    found = model(tmp_path, "2.9.2", **{flavor: {key: "1.2.3", "other_version": "9"}})

    assert texts(found) == [f"{distribution}==1.2.3", "mlflow==2.9.2"]


def test_the_table_names_every_version_the_installed_mlflow_writes() -> None:
    mlflow = pytest.importorskip("mlflow")
    written = {
        (path.relative_to(Path(mlflow.__file__).parent).parts[0], key)
        for path in Path(mlflow.__file__).parent.glob("*/*.py")
        for key in _keys_written(path.read_text())
    }
    known = {(flavor, key) for flavor, key, _ in flavors._RECORDED}

    # Of those that flavors write besides: `johnsnowlabs` and `spark` share their key.
    assert len(written) > 20
    assert {one for one in written if one not in known} == set()


def _keys_written(source: str) -> set[str]:
    calls = re.findall(r"\.add_flavor\((.*?)\n    \)", source, re.DOTALL)
    given = {key for call in calls for key in re.findall(r"\b(\w+_version)=", call)}
    options = set(re.findall(r'^        "(\w+_version)": \w+', source, re.MULTILINE))
    return given | (options if "add_flavor(" in source else set())


def test_the_versions_of_several_flavors_are_taken_together(tmp_path: Path) -> None:
    found = model(
        tmp_path, "1.30.0", xgboost={"xgb_version": "1.6.1"}, sklearn=sklearn("1.0.2"), custom={}
    )

    assert texts(found) == ["scikit-learn==1.0.2", "xgboost==1.6.1", "mlflow==1.30"]


def test_a_library_two_flavors_record_is_pinned_once(tmp_path: Path) -> None:
    found = model(
        tmp_path, johnsnowlabs={"pyspark_version": "3.4.1"}, spark={"pyspark_version": "3.3.0"}
    )

    assert texts(found) == ["pyspark==3.4.1", "mlflow"]


def test_mlflow_is_bare_where_no_version_of_it_is_recorded(tmp_path: Path) -> None:
    assert texts(model(tmp_path, sklearn=sklearn("0.24.2"))) == ["scikit-learn==0.24.2", "mlflow"]


@pytest.mark.parametrize("version", ["2.0.1.dev0", "latest", "", "9" * 5_000])
def test_an_mlflow_that_no_index_has_is_bare(tmp_path: Path, version: str) -> None:
    found = model(tmp_path, version, sklearn=sklearn("0.24.2"))

    assert texts(found) == ["scikit-learn==0.24.2", "mlflow"]


def test_mlflow_alone_is_something(tmp_path: Path) -> None:
    assert texts(model(tmp_path, "2.9.2")) == ["mlflow==2.9.2"]


def test_nothing_is_asked_for_where_nothing_is_recorded(tmp_path: Path) -> None:
    assert texts(model(tmp_path, sklearn={"pickled_model": "model.pkl"})) == []


@pytest.mark.parametrize(
    ("recorded", "pinned"),
    [
        ("1.10.0+cu113", "torch==1.10"),
        ("2.0.0", "torch==2"),
        ("1.13.0a0+git6c9b55e", "torch==1.13a0"),
        ("2.1.0.dev20230801+cu121", "torch==2.1"),
        (" 1.10.1 ", "torch==1.10.1"),
    ],
)
def test_a_version_is_what_the_index_calls_it(tmp_path: Path, recorded: str, pinned: str) -> None:
    found = model(tmp_path, "2.9.2", pytorch={"pytorch_version": recorded})

    assert texts(found) == [pinned, "mlflow==2.9.2"]


def test_a_development_version_of_databricks_is_the_release(tmp_path: Path) -> None:
    found = model(tmp_path, "2.9.2", spark={"pyspark_version": "3.3.2.dev0"})

    assert texts(found) == ["pyspark==3.3.2", "mlflow==2.9.2"]
    assert flavors.differences(found, {"pyspark": "3.3.2"}) == ()


@pytest.mark.parametrize(
    "value",
    [
        None, "", "latest", "2.2.4-tf", "1.0; python_version > '3'", "1.0\n-e .", "1.0 @ https://a",
        "*", "1.*", "9" * 5_000, ["1.0"], {"1.0": None},
    ],
)  # fmt: skip
def test_what_is_no_version_is_dropped(tmp_path: Path, value: Document) -> None:
    found = model(tmp_path, "2.9.2", sklearn=sklearn(value))

    assert texts(found) == ["mlflow==2.9.2"]
    assert flavors.differences(found, {"scikit-learn": "1.4.0"}) == ()


@pytest.mark.parametrize("flavor", [None, "1.0", ["sklearn_version"]])
def test_a_flavor_that_is_no_mapping_records_nothing(tmp_path: Path, flavor: Document) -> None:
    assert texts(model(tmp_path, "2.9.2", sklearn=flavor)) == ["mlflow==2.9.2"]


@pytest.mark.parametrize(
    ("module", "expected"),
    [("keras", ["keras==2.4.3", "mlflow"]), ("tensorflow.keras", [])],
)
def test_the_keras_inside_tensorflow_is_no_distribution(
    tmp_path: Path, module: str, expected: list[str]
) -> None:
    found = model(tmp_path, keras={"keras_module": module, "keras_version": "2.4.3"})

    assert texts(found) == expected


def test_the_version_of_tensorflow_is_its_own_whatever_keras_it_is_for(tmp_path: Path) -> None:
    recorded: Document = {"keras_module": "tensorflow.keras", "keras_version": "2.11.0"}

    assert texts(model(tmp_path, tensorflow=recorded)) == ["tensorflow==2.11", "mlflow"]


def test_a_library_of_another_version_is_noted(tmp_path: Path) -> None:
    found = model(tmp_path, "2.9.2", sklearn=sklearn("1.3.2"), xgboost={"xgb_version": "2.0.0"})

    notes = flavors.differences(found, {"scikit-learn": "1.4.0", "xgboost": "2.0.0", "six": "1"})

    message = "the model was made with scikit-learn 1.3.2; the environment has 1.4.0"
    assert notes == (Note("VERSION_DIFFERS", message, "scikit-learn"),)


def test_every_library_that_differs_is_noted(tmp_path: Path) -> None:
    found = model(tmp_path, sklearn=sklearn("1.3.2"), xgboost={"xgb_version": "2.0.0"})

    notes = flavors.differences(found, {"scikit-learn": "1.2.2", "xgboost": "2.0.1"})

    assert [note.subject for note in notes] == ["scikit-learn", "xgboost"]


@pytest.mark.parametrize(
    ("recorded", "installed"),
    [("1.3", "1.3.0"), ("1.10.0+cu113", "1.10.0+cpu"), ("1.10.0+cu113", "1.10"), ("1.0", "1.0+x"),
     ("0.22.2.post1", "0.22.2-1"), ("1.3.2", "no version"), ("1.3.2", "")],
)  # fmt: skip
def test_the_same_version_in_other_words_is_no_difference(
    tmp_path: Path, recorded: str, installed: str
) -> None:
    found = model(tmp_path, pytorch={"pytorch_version": recorded})

    assert flavors.differences(found, {"torch": installed}) == ()


def test_a_library_that_is_not_there_is_no_difference(tmp_path: Path) -> None:
    assert flavors.differences(model(tmp_path, sklearn=sklearn("1.3.2")), {}) == ()


def test_mlflow_is_no_library_of_the_model(tmp_path: Path) -> None:
    # Where it was bare, envd chose a later one itself.
    assert flavors.differences(model(tmp_path, "2.9.2"), {"mlflow": "2.10.0"}) == ()


def test_a_model_without_files_is_restored_from_its_flavors(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text(SKLEARN)

    found = read(read_model(tmp_path), config.load(root=tmp_path / "root", environ={}))

    assert [one.text for one in found.asked.requirements] == [
        "scikit-learn==1.3.2", "mlflow==2.9.2",
    ]  # fmt: skip
    assert found.python == "3.9.18"
    assert [note.code for note in found.notes] == [
        "INFERRED_FROM_FLAVORS", "PYTHON_FROM_MLMODEL", "SETUPTOOLS_ADDED",
    ]  # fmt: skip
    assert "scikit-learn==1.3.2, mlflow==2.9.2" in found.notes[0].message


def test_a_model_without_files_is_refused_where_nothing_is_mended(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text(SKLEARN)
    settings = config.load(root=tmp_path / "root", environ={"ENVD_RESOLVE__REPAIR": "false"})

    with pytest.raises(ModelInvalidError, match="does not say what it depends on"):
        read(read_model(tmp_path), settings)
