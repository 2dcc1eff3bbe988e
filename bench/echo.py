"""The least that a gRPC server of envd's proto can be: `echo.py SOCKET` answers with its input.

It is what every request to envd pays before envd does anything: grpc.aio on uvloop, the same
messages, the same options, one process.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import uvloop
from envd_client.v1 import envd_pb2 as api

_LIMIT = 64 << 20


async def _predict(request: api.PredictRequest, context: Any) -> api.PredictResponse:
    del context
    return api.PredictResponse(payload=request.payload, content_type=request.content_type)


async def _serve(socket: str) -> None:
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", _LIMIT),
            ("grpc.max_send_message_length", _LIMIT),
            ("grpc.so_reuseport", 0),
        ]
    )
    handler = grpc.unary_unary_rpc_method_handler(
        _predict, api.PredictRequest.FromString, api.PredictResponse.SerializeToString
    )
    service = api.DESCRIPTOR.services_by_name["Predictions"].full_name
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, {"Predict": handler})]
    )
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    print("serving", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))
