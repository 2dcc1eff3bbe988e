"""Asks, as an admin, for RPCs that stand in no list of roles, and prints what the gate says."""

from __future__ import annotations

import asyncio

import grpc

from envd.access.roles import Role
from envd.serve.callers import Caller, Opened
from envd.serve.calls import Calls
from envd.serve.gate import Gate

SERVICES = ("envd.v1.New", "grpc.New")


async def never(request: object, context: object) -> bytes:
    del request, context
    return b""


async def main() -> None:
    server = grpc.aio.server()
    gate = Gate(server, Opened(Caller(Role.ADMIN, "an admin")), Calls())
    for service in SERVICES:
        handlers = {"Thing": grpc.unary_unary_rpc_method_handler(never, bytes, bytes)}
        gate.add_registered_method_handlers(service, handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for service in SERVICES:
            try:
                await channel.unary_unary(f"/{service}/Thing")(b"")
            except grpc.RpcError as error:
                print(error.code().name)
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(main())
