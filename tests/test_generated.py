"""The generated stubs are those of the proto."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_stubs_are_what_the_proto_gives(tmp_path: Path) -> None:
    subprocess.run(["make", "-s", "proto", f"OUT={tmp_path}"], cwd=ROOT, check=True, timeout=60)

    generated = {one.name: one.read_text() for one in (tmp_path / "envd_client/v1").iterdir()}

    assert set(generated) == {
        "envd_pb2.py", "envd_pb2.pyi", "envd_pb2_grpc.py", "envd_pb2_grpc.pyi",
    }  # fmt: skip
    for name, text in generated.items():
        kept = ROOT / "clients/python/envd_client/v1" / name
        assert kept.read_text() == text, f"{name} is stale; run `make proto`"
