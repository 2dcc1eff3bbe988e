"""All that is served over HTTP."""

from __future__ import annotations

import asyncio

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from envd.serve.http import openapi
from envd.serve.http.edge import Edge, Endpoint
from envd.serve.http.inference import Inference
from envd.serve.http.scoring import Scoring
from envd.serve.metrics import Metrics
from envd.serve.oip.catalog import Catalog
from envd.serve.predicting import Predicting
from envd.serve.served import Entries


def routes(
    edge: Edge,
    entries: Entries,
    catalog: Catalog,
    predicting: Predicting,
    metrics: Metrics | None,
) -> list[Route]:
    """Return them: MLflow's, those of the Open Inference Protocol, the metrics if there are any."""
    found = Scoring(edge, entries, predicting).routes()
    found += Inference(edge, catalog, predicting).routes()
    found.append(Route("/openapi.json", edge.plain(_described(entries)), methods=["GET"]))
    if metrics:
        found.append(Route("/metrics", edge.plain(_told(metrics)), methods=["GET"]))
    return found


def _described(entries: Entries) -> Endpoint:
    async def describe(request: Request) -> Response:
        del request
        names = {one.served.name for one in entries} - {""}
        return JSONResponse(openapi.document(sorted(names)))

    return describe


def _told(metrics: Metrics) -> Endpoint:
    async def tell(request: Request) -> Response:
        del request
        text = await asyncio.to_thread(metrics.text)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return tell
