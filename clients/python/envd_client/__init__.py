"""Asks envd for predictions and environments, blocking or with asyncio."""

from envd_client.aio import AsyncClient
from envd_client.answer import Answer
from envd_client.blocking import Client
from envd_client.errors import EnvdError, MachineError, ModelError, RequestError, TryAgainError
from envd_client.streams import AsyncStream, Stream

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncStream",
    "Client",
    "EnvdError",
    "MachineError",
    "ModelError",
    "RequestError",
    "Stream",
    "TryAgainError",
]
