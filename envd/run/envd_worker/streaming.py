"""Answers one request in parts, as the daemon takes them."""

import contextlib
import time
import traceback

from .asking import ask, call
from .inbox import Flow
from .protocol import DONE, FAILED, ITEM, PART, PART_BYTES
from .refusals import Refused, refuse, short


def frames(model, request, inbox):
    """Yield the frames of the answer to *request*, whose input is prepared.

    The head of it says which function of the model is to be asked: each item that
    `predict_stream` yields is one here, and what `predict` returns is one as well.
    """
    flow, seconds, notes = Flow(request.number, inbox), request.prepared.seconds, {}
    started = time.perf_counter()
    try:
        with contextlib.closing(_items(model, request)) as items:
            for body, noted in items:
                seconds += time.perf_counter() - started
                notes.update((one["code"], one) for one in noted)
                for kind, part in _parts(body):
                    if not flow.takes(len(part)):
                        raise Refused("CANCELLED", "nobody waits for the answer any more")
                    yield request.number, kind, {}, part
                started = time.perf_counter()
    except Refused as refused:
        yield request.number, FAILED, refused.document(), b""
        return
    seconds += time.perf_counter() - started
    yield request.number, DONE, {"seconds": seconds, "notes": list(notes.values())}, b""


def _items(model, request):
    """Yield each item as bytes, with notes on it."""
    given, head = request.prepared, request.head
    if given.refused:
        raise given.refused
    data, params = given.input.data, given.input.params
    limit, setting = head["limit"], head["setting"]
    if head["function"] == "predict":
        yield given.input.written(ask(model.predict, data, params), limit, setting)
        return
    with contextlib.closing(_said(_function(model), data, params)) as said:
        for item in said:
            yield given.input.item_written(item, limit, setting)


def _function(model):
    """Return the `predict_stream` of *model*.

    MLflow's own models all have one, and know whether there is anything behind it.
    """
    found = getattr(model, "predict_stream", None)
    if found is None or getattr(model, "_predict_stream_fn", found) is None:
        message = "the model has no `predict_stream`; ask for its prediction"
        raise Refused("STREAM_UNSUPPORTED", message)
    return found


def _said(function, data, params):
    """Yield what *function* yields, and close what does so."""
    items, has_begun = _called(function, data, params), False
    try:
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except NotImplementedError as error:
                if has_begun:
                    refuse(error)
                # As MLflow's own classes of models do until somebody writes theirs.
                message = "the model has no `predict_stream`: %s" % short(error)
                raise Refused("STREAM_UNSUPPORTED", message)
            except (Exception, SystemExit) as error:
                refuse(error)
            has_begun = True
            yield item
    finally:
        _close(items)


def _called(function, data, params):
    """Call *function* when the first item is asked for: MLflow looks at the input then."""
    yield from call(function, data, params)


def _close(items):
    """Let the model end what it has begun; what it raises then is for its log."""
    try:
        items.close()
    except (Exception, SystemExit):
        traceback.print_exc()


def _parts(body):
    """Yield *body* in pieces, each with the kind of frame it goes in."""
    view = memoryview(body)
    start = 0
    while len(view) - start > PART_BYTES:
        yield PART, view[start : start + PART_BYTES]
        start += PART_BYTES
    yield ITEM, view[start:]
