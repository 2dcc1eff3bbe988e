"""Reads the google.rpc.Status that a failed call carries.

Its messages live in a pool of their own: a second copy of them in the default pool would
clash with googleapis-common-protos, which the same process may have loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pool, message_factory, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError

if TYPE_CHECKING:
    from collections.abc import Iterator

TRAILER = "grpc-status-details-bin"
DOMAIN = "envd"

_PROTO = """
name: "envd_client/details.proto" package: "google.rpc" syntax: "proto3"
message_type { name: "Any"
  field { name: "type_url" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "value" number: 2 label: LABEL_OPTIONAL type: TYPE_BYTES } }
message_type { name: "Duration"
  field { name: "seconds" number: 1 label: LABEL_OPTIONAL type: TYPE_INT64 }
  field { name: "nanos" number: 2 label: LABEL_OPTIONAL type: TYPE_INT32 } }
message_type { name: "Status"
  field { name: "code" number: 1 label: LABEL_OPTIONAL type: TYPE_INT32 }
  field { name: "message" number: 2 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "details" number: 3 label: LABEL_REPEATED type: TYPE_MESSAGE
          type_name: ".google.rpc.Any" } }
message_type { name: "ErrorInfo"
  field { name: "reason" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "domain" number: 2 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "metadata" number: 3 label: LABEL_REPEATED type: TYPE_MESSAGE
          type_name: ".google.rpc.ErrorInfo.MetadataEntry" }
  nested_type { name: "MetadataEntry" options { map_entry: true }
    field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "value" number: 2 label: LABEL_OPTIONAL type: TYPE_STRING } } }
message_type { name: "RetryInfo"
  field { name: "retry_delay" number: 1 label: LABEL_OPTIONAL type: TYPE_MESSAGE
          type_name: ".google.rpc.Duration" } }
"""

_POOL = descriptor_pool.DescriptorPool()
_POOL.AddSerializedFile(text_format.Parse(_PROTO, FileDescriptorProto()).SerializeToString())


@dataclass(frozen=True)
class Details:
    """What envd says of a failure beside its status and its message."""

    reason: str
    metadata: dict[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None


def decode(trailer: bytes) -> Details | None:
    """Return the details in the bytes of a *trailer*, None where they are not envd's."""
    try:
        status = _parse("Status", trailer)
        infos = [info for info in _unpack(status, "ErrorInfo") if info.domain == DOMAIN]
        delays = [_seconds(retry.retry_delay) for retry in _unpack(status, "RetryInfo")]
    except DecodeError:
        return None
    if not infos:
        return None
    return Details(infos[0].reason, dict(infos[0].metadata), next(iter(delays), None))


def _unpack(status: Any, name: str) -> Iterator[Any]:
    for detail in status.details:
        if detail.type_url.endswith(f"/google.rpc.{name}"):
            yield _parse(name, detail.value)


def _parse(name: str, encoded: bytes) -> Any:
    descriptor = _POOL.FindMessageTypeByName(f"google.rpc.{name}")
    return message_factory.GetMessageClass(descriptor).FromString(encoded)


def _seconds(duration: Any) -> float:
    return float(duration.seconds + duration.nanos / 1e9)
