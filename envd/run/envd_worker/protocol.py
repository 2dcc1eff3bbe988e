"""The frames between the daemon and a worker.

A frame is a header (payload length, request id, kind, head length), a JSON head, and the
payload. The daemon sends LOAD once and then PREDICT; the worker answers each with DONE or
FAILED and the same id, in order.

CANCEL has the id of a request: one that is yet to begin is answered with FAILED and reason
CANCELLED in its turn. BEGUN, with id 0 and `{"ids": [...]}`, says which requests are run
next; without one it is the oldest that has no answer.

STREAM is a request whose answer comes in parts before its DONE, or FAILED. Each item of it
is any number of PARTs and one ITEM, which has the rest. A worker sends as much as the
daemon has room for: WINDOW_BYTES to begin with, and then what CREDIT, `{"bytes": ...}`,
allows it more. After a CANCEL it sends no other item, and FAILED. It is sent to a worker
that has nothing else to do, which gets nothing else meanwhile.
"""

import json
import struct

HEADER = struct.Struct("!QIBI")
LOAD, PREDICT, DONE, FAILED, CANCEL, BEGUN, STREAM, PART, ITEM, CREDIT = range(10)
MAX_HEAD_BYTES = 1 << 20
# The content type of payloads as in `tensors`.
TENSORS = "application/x-envd-tensors"
# The most that one PART or ITEM has, what is held of one stream, and what a frame of it
# counts beside its payload: many small ones take place as well, and the time of others.
PART_BYTES, WINDOW_BYTES, BESIDE_BYTES = 1 << 18, 1 << 20, 1 << 10

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
