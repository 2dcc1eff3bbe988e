"""Run by the Python of an environment with mlflow: saves models below a folder.

`python make_forkable_models.py FOLDER REQUIREMENT...`
"""

import os
import sys

import mlflow
import numpy as np
import pandas as pd
from lightgbm import LGBMRegressor
from sklearn.cluster import KMeans
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression

folder, requirements = sys.argv[1], sys.argv[2:]
rng = np.random.RandomState(0)
rows = pd.DataFrame(rng.rand(200, 4), columns=list("abcd"))
label = (rows.a + rows.b > 1).astype(int)


class Draws(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        import random

        return [float(np.random.rand()), random.random()]


class Shadowed(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input):
        import joblib

        return [joblib.WHOSE]


class Sets(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        os.environ["SET_BY_MODEL"] = "yes"

    def predict(self, context, model_input):
        return [os.environ["SET_BY_MODEL"]]


def save_sklearn(name, estimator):
    mlflow.sklearn.save_model(
        estimator.fit(rows, label),
        os.path.join(folder, name),
        pip_requirements=requirements,
        serialization_format="cloudpickle",
    )


def save_pyfunc(name, model, **more):
    mlflow.pyfunc.save_model(
        os.path.join(folder, name), python_model=model, pip_requirements=requirements, **more
    )


save_sklearn("logistic", LogisticRegression())
save_sklearn("forest", RandomForestClassifier(n_estimators=20, n_jobs=2, random_state=0))
save_sklearn("boosting", HistGradientBoostingClassifier(max_iter=20, random_state=0))
save_sklearn("clusters", KMeans(n_clusters=3, n_init=2, random_state=0))
save_sklearn("lightgbm", LGBMRegressor(n_estimators=20, random_state=0, verbose=-1))
save_pyfunc("draws", Draws())
save_pyfunc("sets", Sets())
joblib = os.path.join(folder, "joblib.py")
with open(joblib, "w") as file:
    file.write("WHOSE = 'the model'\n")
save_pyfunc("shadowed", Shadowed(), code_path=[joblib]) if mlflow.__version__ < "2.1" else (
    save_pyfunc("shadowed", Shadowed(), code_paths=[joblib])
)
