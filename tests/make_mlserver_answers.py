"""Run by the Python of an environment with mlserver and mlserver-mlflow: says what they do.

`python make_mlserver_answers.py > mlserver_answers.json`
"""

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from mlflow.models.signature import ModelSignature
from mlflow.types.schema import Schema
from mlserver.settings import ModelParameters, ModelSettings
from mlserver.types import InferenceRequest
from mlserver_cases import BINARY, METADATA, REQUESTS, answers, described
from mlserver_mlflow import MLflowRuntime, TensorDictCodec


def runtime(inputs=None, outputs=None):
    """Return MLServer's runtime for a model with that signature."""
    parameters = ModelParameters(uri="nowhere")
    found = MLflowRuntime(
        ModelSettings(name="m", implementation=MLflowRuntime, parameters=parameters)
    )
    if inputs:
        schema = Schema.from_json(json.dumps(inputs))
        found._signature = ModelSignature(
            inputs=schema, outputs=Schema.from_json(json.dumps(outputs or inputs))
        )
        found._sync_metadata()
    return found


def failed(error):
    return {"error": type(error).__name__}


def read(inputs, document, is_binary):
    """Return what a model with the signature *inputs* is given."""
    request = InferenceRequest.model_validate(document)
    for one in request.inputs if is_binary else ():
        # As its gRPC has them.
        data = one.data.root
        if one.datatype == "BYTES":
            listed = data if isinstance(data, list) else [data]
            one.data.root = [text.encode() for text in listed]
    try:
        return described(runtime(inputs).decode_request(request))
    except Exception as error:
        return failed(error)


def written(raw):
    """Return what MLServer makes of the answer *raw*."""
    try:
        response = runtime().encode_response(raw, default_codec=TensorDictCodec)
        document = response.model_dump(exclude={"model_name", "model_version", "id"})
    except Exception as error:
        return failed(error)
    return json.loads(json.dumps(document, default=lambda one: one.decode()))


def metadata(inputs):
    """Return what MLServer says of the tensors of a model with that signature."""
    found = runtime(inputs)
    tensors = [json.loads(one.model_dump_json()) for one in (*found.inputs, *found.outputs)]
    return {"tensors": tensors, "content_type": found._settings.parameters.content_type}


def main():
    found = {
        "read": {name: read(*case, False) for name, case in REQUESTS.items()},
        "read_binary": {name: read(*REQUESTS[name], True) for name in BINARY},
        "written": {name: written(raw) for name, raw in answers().items()},
        "metadata": {name: metadata(inputs) for name, inputs in METADATA.items()},
    }
    print(json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False, default=str))


main()
