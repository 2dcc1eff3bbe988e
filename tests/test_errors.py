"""Every failure a caller can meet, as others rely on it."""

from __future__ import annotations

import inspect
import json
import re
import time
from collections.abc import Iterator

import grpc
import pytest

from envd import errors
from envd.builds.builds import RemovedAtOnceError
from envd.errors import Blame, EnvdError, InternalError, ModelNotFoundError, from_document
from envd.serve import status

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, EnvdError) and cls is not EnvdError
]


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_survives_its_document(cls: type[EnvdError]) -> None:
    error = cls("it failed; mend it", path="/a", line=3)

    again = from_document(json.loads(json.dumps(error.document())))

    assert type(again) is cls
    assert again.document() == error.document()
    assert str(again) == "it failed; mend it"


def test_metadata_is_text_without_what_is_none() -> None:
    error = InternalError("it failed", number=1, nothing=None, empty="")

    assert error.metadata == {"number": "1", "empty": ""}


@pytest.mark.parametrize(
    "document", [{}, {"reason": "FROM_THE_FUTURE", "message": "m", "metadata": {"a": "b"}}]
)
def test_what_nobody_knows_is_internal(document: dict[str, object]) -> None:
    error = from_document(document)

    assert type(error) is InternalError
    assert error.message == str(document.get("message"))
    assert error.metadata == document.get("metadata", {})


def test_half_a_character_is_told_as_what_it_is() -> None:
    told = json.loads(json.dumps({"reason": "MODEL_RAISED", "message": "no \ud800 here",
                                  "metadata": {"traceback": "\udcff"}}))  # fmt: skip
    error = from_document(told)

    answer = status.of(error, "id")

    assert answer.details == str(error) == "no \\ud800 here"
    assert error.metadata == {"traceback": "\\udcff"}


def test_every_reason_is_one_class_and_follows_its_name() -> None:
    reasons = [cls.reason for cls in CLASSES]

    assert len(set(reasons)) == len(reasons) > 20
    for cls in CLASSES:
        words = re.findall("[A-Z][a-z]*", cls.__name__.removesuffix("Error"))
        assert cls.reason == "_".join(words).upper()


def test_every_code_is_one_of_grpc() -> None:
    codes = {cls.code for cls in CLASSES}

    assert codes <= {code.name for code in grpc.StatusCode} - {"OK"}


def test_internal_means_a_bug_and_nothing_else() -> None:
    assert [cls for cls in CLASSES if cls.code == "INTERNAL"] == [InternalError]


@pytest.mark.parametrize("cls", CLASSES)
def test_what_is_worth_a_retry_says_when(cls: type[EnvdError]) -> None:
    is_passing = cls.code == "UNAVAILABLE" or cls.blame is Blame.TRANSIENT
    assert (cls.retry_after_s is not None) == is_passing
    assert cls.retry_after_s is None or cls.retry_after_s > 0


@pytest.mark.parametrize("cls", CLASSES)
def test_what_will_work_by_itself_is_worth_a_retry(cls: type[EnvdError]) -> None:
    assert cls.blame is not Blame.TRANSIENT or cls.retry_after_s is not None


@pytest.mark.parametrize("cls", CLASSES)
def test_a_class_says_what_the_caller_can_do(cls: type[EnvdError]) -> None:
    assert re.fullmatch(r"[A-Z][^;]+; [a-z ]+\.|envd itself is at fault; report it\.", cls.__doc__)


def test_a_message_of_any_length_is_cut_at_once() -> None:
    error = ModelNotFoundError("é" * (8 << 20))
    began = time.thread_time()

    found = status.of(error, "1")

    assert time.thread_time() - began < 0.3
    assert 300 < len(found.details) < 2400


def test_every_error_can_be_raised_anew() -> None:
    ours = [cls for cls in every(EnvdError) if cls.__module__.startswith("envd.")]
    assert RemovedAtOnceError in ours
    for error in (cls("m", model="x") for cls in ours):
        error.retry_after_s = 2.0
        again = error.anew()
        assert (type(again), again.message, again.retry_after_s) == (type(error), "m", 2.0)
        assert again.metadata == {"model": "x"}


def every(cls: type[EnvdError]) -> Iterator[type[EnvdError]]:
    """Yield *cls* and all that derive from it, of all modules that are loaded."""
    yield cls
    for one in cls.__subclasses__():
        yield from every(one)
