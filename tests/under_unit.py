"""Does to this process what the unit does to the daemon, and tries what sandboxes are made of.

`python under_unit.py PACKAGE ALLOWED`: as root; prints what the probe in PACKAGE finds then, which
anybody may read. ALLOWED are the numbers of the system calls that may be made, or `all`.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NOBODY = 65534
_LOAD, _EQUAL, _RETURN, _ALLOW, _REFUSE = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000
_FAMILIES = (1, 2, 10, 16)
# What is no part of the system's own files, and stays as it is.
_API = ("/proc", "/sys", "/dev")


def main(package: str, allowed: str) -> None:
    worker = _load(package)
    if allowed != "all":
        _mount(worker)
    worker["limits"].become(_NOBODY, _NOBODY)
    worker["limits"].drop_capabilities()
    # Anew, as nobody: its modules remember who they run as.
    worker = _load(package)
    if allowed != "all":
        numbers = json.loads(allowed)
        _filter(worker, numbers["calls"], numbers["socket"])
    print(json.dumps(worker["probe"].probe()))


def _load(package: str) -> dict[str, Any]:
    for name in [name for name in sys.modules if name.startswith("envd_worker")]:
        del sys.modules[name]
    sys.path[:0] = [package]
    names = ("probe", "mounts", "limits", "kernel", "namespaces")
    return {name: importlib.import_module(f"envd_worker.{name}") for name in names}


def _mount(worker: dict[str, Any]) -> None:
    """ProtectSystem=strict, PrivateTmp, PrivateMounts, ProtectKernelModules."""
    mounts = worker["mounts"]
    worker["kernel"].call("unshare", worker["namespaces"].FLAGS["mount"])
    mounts.mount(None, "/", None, mounts.RECURSIVE | mounts.SLAVE)
    for line in Path("/proc/self/mounts").read_text().splitlines():
        place = line.split()[1]
        if not place.startswith(_API):
            flags = mounts.REMOUNT | mounts.BIND | mounts.RDONLY | mounts.NOSUID
            mounts.mount(None, place, None, flags)
    for place in ("/tmp", "/var/tmp"):
        mounts.tmpfs(place, 1 << 20, "1777")
    if Path("/usr/lib/modules").is_dir():
        mounts.tmpfs("/usr/lib/modules", 1 << 12, "0000")


def _filter(worker: dict[str, Any], numbers: list[int], socket: int) -> None:
    """SystemCallFilter, SystemCallErrorNumber, RestrictAddressFamilies."""
    program = b"".join(_program(numbers, socket))
    text = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(text))
    worker["kernel"].call("prctl", 22, 2, ctypes.c_char_p(head), 0, 0)


def _program(numbers: list[int], socket: int) -> Iterator[bytes]:
    yield _step(_LOAD, 0)
    yield _step(_EQUAL, socket, 0, 2 * len(_FAMILIES) + 2)
    yield _step(_LOAD, 16)
    for family in _FAMILIES:
        yield _step(_EQUAL, family, 0, 1)
        yield _step(_RETURN, _ALLOW)
    yield _step(_RETURN, _REFUSE | errno.EAFNOSUPPORT)
    for number in numbers:
        yield _step(_EQUAL, number, 0, 1)
        yield _step(_RETURN, _ALLOW)
    yield _step(_RETURN, _REFUSE | errno.EPERM)


def _step(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_so, if_not, value)


if __name__ == "__main__":
    main(*sys.argv[1:])
