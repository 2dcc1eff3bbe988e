"""Writes the answer of a model as the tensors that a request asks for."""

import math

from . import outputs, tensors
from .refusals import Refused, name, short


class Wanted:
    """What a request wants to be answered: which tensors, and which of them in buffers."""

    def __init__(self, header, metadata):
        """Read the header of the request; *metadata* is as in `reading`."""
        self._id, self._schema = header.get("id"), metadata.outputs
        if not isinstance(self._id, (str, type(None))):
            raise tensors.Malformed("the `id` of the request is no text")
        given = tensors.parameters_of(header, "the request")
        self._is_binary, self._outputs = given.get("binary_data_output") is True, {}
        for one in _list(header.get("outputs") or []):
            label = one.get("name") if isinstance(one, dict) else None
            if not isinstance(label, str):
                raise tensors.Malformed("an output that is asked for has no name")
            self._outputs[label] = tensors.parameters_of(one, label)
            if self._outputs[label].get("classification"):
                raise Refused("PAYLOAD_INVALID", "envd has no classification of outputs")

    def written(self, raw, limit, setting="daemon.max_message"):
        """Return what a model answered as a payload of at most *limit* bytes, and notes on it.

        Which *setting* the limit is can be read in the error of what is larger.
        """
        try:
            kind, found = outputs.of(raw)
        except Exception as error:
            # Whatever it is: it was the model's objects that were asked.
            message = "the model's answer cannot be written as tensors: " + short(error)
            raise Refused("MODEL_RAISED", message, exception=name(error))
        body, notes = self._sealed(kind, self._chosen(found))
        if len(body) > limit:
            message = "the answer is %d bytes, more than the %d that `%s` allows"
            raise Refused("PAYLOAD_TOO_LARGE", message % (len(body), limit, setting))
        return body, notes

    def _chosen(self, found):
        """Return those of the tensors that are wanted."""
        if not self._outputs:
            return found
        by_name = {one.label: one for one in found}
        unknown = [one for one in self._outputs if one not in by_name]
        if not unknown:
            return [by_name[one] for one in self._outputs]
        if unknown == self._told() and [one.label for one in found] == [outputs.UNNAMED]:
            # The signature has another name for what the answer has none for.
            found[0].label = unknown[0]
            return found
        message = "the model has no output `%s`; it answers %s"
        raise Refused("PAYLOAD_INVALID", message % (unknown[0], ", ".join(sorted(by_name))))

    def _told(self):
        """Return the names of the outputs in the metadata of the model."""
        specs = getattr(self._schema, "inputs", None) or []
        return [one.name or "output-%d" % place for place, one in enumerate(specs)]

    def _sealed(self, kind, found):
        documents, buffers, notes = [], [], []
        for one in found:
            document = {"name": one.label, "shape": one.shape, "datatype": one.datatype}
            parameters = {"content_type": one.kind} if one.kind else {}
            if self._outputs.get(one.label, {}).get("binary_data", self._is_binary):
                buffers.append(one.buffer())
                parameters["binary_data_size"] = len(buffers[-1])
            else:
                document["data"] = _finite(one.data(), one.datatype, notes)
            if parameters:
                document["parameters"] = parameters
            documents.append(document)
        header = {} if self._id is None else {"id": self._id}
        if kind:
            header["parameters"] = {"content_type": kind}
        header["outputs"] = documents
        return tensors.sealed(header, buffers), notes


def _finite(values, datatype, notes):
    if datatype not in tensors.FLOATS and datatype != "BF16":
        return values
    if all(map(math.isfinite, values)):
        return values
    if not notes:
        note = "NaN and infinities in the answer are sent as null"
        notes.append({"code": "NAN_AS_NULL", "message": note})
    return [one if math.isfinite(one) else None for one in values]


def _list(value):
    if not isinstance(value, list):
        raise tensors.Malformed("the outputs that are asked for are no list")
    return value
