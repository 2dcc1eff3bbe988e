"""Saves the model in `iris/`: run it with mlflow and scikit-learn to make it anew."""

import json
import shutil
from pathlib import Path

import mlflow
from mlflow.models import infer_signature
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

here = Path(__file__).parent
iris = load_iris(as_frame=True)
model = LogisticRegression(max_iter=1000).fit(iris.data, iris.target)
asked = iris.data.iloc[[0, 51, 102, 149]]

shutil.rmtree(here / "iris", ignore_errors=True)
mlflow.sklearn.save_model(
    model,
    here / "iris",
    signature=infer_signature(iris.data, model.predict(iris.data)),
    serialization_format="cloudpickle",
)
payload = {"dataframe_split": asked.to_dict(orient="split")}
(here / "iris.json").write_text(json.dumps(payload, indent=1) + "\n")
print(model.predict(asked).tolist())
