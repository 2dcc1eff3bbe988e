"""The description of what is served over HTTP is true, whatever is sent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from envd.serve.http import openapi
from tests.tiny import Tiny
from tests.web import Web, served

# Of what is allowed, and of what is not.
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
FEW, MANY = 3, 150
EXCLUDED = [positive_data_acceptance, not_a_server_error]


@pytest.fixture(scope="module")
def web(tiny: Tiny, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("described")
    models = {one: tiny.model(folder / one, body="        return data") for one in ("a", "b b")}
    with served(folder, home, models, **tiny.settings, ENVD_HTTP__MODEL="a") as found:
        found("POST", "/invocations", {"inputs": 1})
        yield found


def operations() -> list[tuple[str, str]]:
    paths = openapi.document([])["paths"]
    return [
        (method, path) for path, item in paths.items() for method in item if method != "parameters"
    ]


@pytest.mark.parametrize(("method", "path"), operations())
def test_what_is_described_is_what_happens(web: Web, method: str, path: str) -> None:
    _ask(web, method, path, FEW)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), operations())
def test_what_is_described_is_what_happens_ever_again(web: Web, method: str, path: str) -> None:
    _ask(web, method, path, MANY)


def _ask(web: Web, method: str, path: str, count: int) -> None:
    operation = schemathesis.openapi.from_url(f"{web.url}/openapi.json")[path][method]
    for mode in MODES if operation.path_parameters or operation.body else MODES[:1]:

        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case) -> None:
            response = case.call()
            # A model may refuse what the protocol allows, and not be loaded.
            case.validate_response(response, excluded_checks=EXCLUDED)
            assert response.status_code < 500 or response.status_code == 503

        check()


def test_the_description_has_every_route_and_no_other(web: Web) -> None:
    described = {path for _, path in operations()}
    by_method = {path: web("DELETE", path.format(name="a", version="1")) for path in described}

    assert {one.status for one in by_method.values()} == {405}
    allowed = {path: set(re.split(", ?", one.headers["allow"])) for path, one in by_method.items()}
    assert {
        (method, path) for path, methods in allowed.items() for method in methods - {"HEAD"}
    } == {(method.upper(), path) for method, path in operations()}
