"""The frames between the daemon and a worker.

A frame is a header (payload length, request id, kind, head length), a JSON head, and the
payload. The daemon sends LOAD once and then PREDICT; the worker answers each with DONE or
FAILED and the same id, in order.

CANCEL has the id of a request: one that is yet to begin is answered with FAILED and reason
CANCELLED in its turn. BEGUN, with id 0 and `{"ids": [...]}`, says which requests are run
next; without one it is the oldest that has no answer.
"""

import json
import struct

HEADER = struct.Struct("!QIBI")
LOAD, PREDICT, DONE, FAILED, CANCEL, BEGUN = range(6)
MAX_HEAD_BYTES = 1 << 20
# The content type of payloads as in `tensors`.
TENSORS = "application/x-envd-tensors"

_JOINED_BYTES = 1 << 16


def send(connection, frames):
    """Send frames, each (id, kind, head, payload); small ones together."""
    text = bytearray()
    for number, kind, head, payload in frames:
        said = json.dumps(head).encode()
        text += HEADER.pack(len(payload), number, kind, len(said)) + said
        if len(payload) > _JOINED_BYTES:
            connection.sendall(text)
            connection.sendall(payload)
            text = bytearray()
        else:
            text += payload
    if text:
        connection.sendall(text)
