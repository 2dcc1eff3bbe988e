"""Saves real models by the MLflow of a training environment: `make_inferred_models.py FOLDER`.

FOLDER holds `mine/`, a project that is installed to be worked on. Each model has an example,
so that MLflow infers from a prediction as well; what it infers lies in its requirements.txt.
"""

import os
import sys

import lightgbm
import mlflow
import numpy as np
import pandas as pd
import statsmodels.api as sm
import xgboost
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

TABLE = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0] * 10, "b": [0.5, 0.1, 0.9, 0.4] * 10})
LABELS = np.array([0, 1, 0, 1] * 10)
TEXTS = pd.DataFrame({"t": ["<p>hi <b>x</b></p>", "<i>y</i>"]})


class Lazy(mlflow.pyfunc.PythonModel):
    """Imports what it needs when it is asked."""

    def predict(self, context, model_input, params=None):
        from bs4 import BeautifulSoup

        return [BeautifulSoup(one, "html.parser").text for one in model_input["t"]]


class Tabulated(mlflow.pyfunc.PythonModel):
    """Uses what pandas has by an extra only."""

    def predict(self, context, model_input, params=None):
        return [model_input.to_markdown()]


class Namespaces(mlflow.pyfunc.PythonModel):
    """Uses one of several distributions that share a namespace."""

    def predict(self, context, model_input, params=None):
        from zope.interface import Interface

        return [Interface.__name__] * len(model_input)


class Worked(mlflow.pyfunc.PythonModel):
    """Uses a project that is worked on, which uses six."""

    def predict(self, context, model_input, params=None):
        import mine

        return [mine.text(one) for one in model_input["t"]]


class Plain(mlflow.pyfunc.PythonModel):
    """Needs nothing but MLflow."""

    def predict(self, context, model_input, params=None):
        return [len(one) for one in model_input["t"]]


def _halved(table):
    return table / 2


def main(folder):
    os.chdir(folder)
    scaled = make_pipeline(StandardScaler(), LogisticRegression()).fit(TABLE, LABELS)
    own = make_pipeline(FunctionTransformer(_halved), LogisticRegression()).fit(TABLE, LABELS)
    sklearn = {"input_example": TABLE[:3]}
    mlflow.sklearn.save_model(scaled, "sklearn", **sklearn)
    mlflow.sklearn.save_model(own, "sklearn_pickle", serialization_format="cloudpickle", **sklearn)
    booster = lightgbm.LGBMClassifier(n_estimators=3, n_jobs=1, verbose=-1).fit(TABLE, LABELS)
    mlflow.lightgbm.save_model(booster.booster_, "lightgbm", input_example=TABLE[:3])
    matrix = xgboost.DMatrix(TABLE, LABELS)
    trained = xgboost.train({"nthread": 1, "max_depth": 2}, matrix, 3)
    mlflow.xgboost.save_model(trained, "xgboost", input_example=TABLE[:3])
    fitted = sm.OLS(LABELS, sm.add_constant(TABLE)).fit()
    mlflow.statsmodels.save_model(fitted, "statsmodels", input_example=sm.add_constant(TABLE)[:3])
    for kind, example in (
        (Lazy, TEXTS),
        (Tabulated, TABLE[:2]),
        (Namespaces, TEXTS),
        (Worked, TEXTS),
        (Plain, TEXTS),
    ):
        name = kind.__name__.lower()
        mlflow.pyfunc.save_model(name, python_model=kind(), input_example=example)


if __name__ == "__main__":
    main(sys.argv[1])
