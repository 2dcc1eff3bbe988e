"""Answers requests with a model, several in one call where that is asked for."""

import time

from . import batching, streaming
from .asking import ask
from .protocol import BEGUN, DONE, FAILED, PREDICT, STREAM
from .reading import metadata_of, read
from .refusals import Refused


class Prepared:
    """The input of a request, or why it has none; and how long that took to find."""

    def __init__(self, head, payload, metadata):
        """Read *payload*."""
        started = time.perf_counter()
        self.input = self.refused = None
        try:
            self.input = read(head, payload, metadata)
        except Refused as refused:
            self.refused = refused
        self.seconds = time.perf_counter() - started


class Scorer:
    """A loaded model, and how its requests are answered."""

    def __init__(self, model, limit, at_once=1):
        """Answer in at most *limit* bytes, up to *at_once* requests by one call."""
        self._model, self._limit, self._at_once = model, limit, at_once
        self._metadata = None

    def answers(self, request, inbox):
        """Yield the frames to send, some at a time: the answers to *request* and its like.

        Its like are those that wait in *inbox* directly behind it and fit into one call.
        """
        self._prepare(request)
        if request.kind == STREAM:
            for frame in streaming.frames(self._model, request, inbox):
                yield [frame]
            return
        group = [request, *self._beside(request, inbox)]
        good = [one for one in group if one.prepared.input]
        is_batch = len(good) > 1
        if is_batch:
            yield [_begun(good)]
            frames = self._together(group, good)
            if frames:
                yield frames
                return
        for one in group:
            if is_batch:
                yield [_begun([one])]
            yield [self._alone(one)]

    def _prepare(self, request):
        """Read the input of *request*, once."""
        if request.prepared:
            return
        if self._metadata is None:
            self._metadata = metadata_of(self._model)
        request.prepared = Prepared(request.head, request.payload, self._metadata)
        request.payload = b""

    def _beside(self, request, inbox):
        """Yield those next in order that fit into one call with *request*."""
        left = self._at_once - 1 if request.prepared.input else 0
        while left > 0:
            other = inbox.next()
            if other is None or other.kind != PREDICT or other.head != request.head:
                return
            self._prepare(other)
            found = other.prepared.input
            if found and not batching.fits(request.prepared.input, found):
                return
            yield inbox.take_next()
            left -= 1

    def _alone(self, request):
        """Return the frame that answers *request*."""
        started, prepared = time.perf_counter(), request.prepared
        try:
            if prepared.refused:
                raise prepared.refused
            raw = ask(self._model.predict, prepared.input.data, prepared.input.params)
            body, notes = prepared.input.written(raw, self._limit)
        except Refused as refused:
            return request.number, FAILED, refused.document(), b""
        seconds = prepared.seconds + time.perf_counter() - started
        return request.number, DONE, {"seconds": seconds, "notes": notes}, body

    def _together(self, group, good):
        """Return the frames that answer *group*, if one call can answer the *good* of it."""
        started = time.perf_counter()
        inputs = [one.prepared.input for one in good]
        try:
            data, sizes = batching.join(inputs)
            raw = ask(self._model.predict, data, inputs[0].params)
            parts = batching.split(raw, sizes)
        except (batching.Apart, Refused):
            return None
        raws = {one.number: part for one, part in zip(good, parts)}
        seconds = time.perf_counter() - started
        return [self._share(one, raws.get(one.number), seconds, len(good)) for one in group]

    def _share(self, request, raw, seconds, count):
        """Return the frame that answers *request* with its share of a call for *count*."""
        try:
            if request.prepared.refused:
                raise request.prepared.refused
            body, notes = request.prepared.input.written(raw, self._limit)
        except Refused as refused:
            return request.number, FAILED, refused.document(), b""
        return request.number, DONE, {"seconds": seconds, "notes": notes, "batch": count}, body


def _begun(requests):
    return 0, BEGUN, {"ids": [one.number for one in requests]}, b""
