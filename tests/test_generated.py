"""The generated stubs are those of the proto."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


KEPT = {
    "envd_client/v1/envd": ROOT / "clients/python",
    "envd/serve/oip/inference": ROOT,
}


def test_the_stubs_are_what_the_protos_give(tmp_path: Path) -> None:
    subprocess.run(
        ["make", "-s", "proto", f"CLIENT={tmp_path}", f"DAEMON={tmp_path}"],
        cwd=ROOT,
        check=True,
        timeout=60,
    )

    generated = {str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*.py*")}

    ends = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
    assert generated == {name + end for name in KEPT for end in ends}
    for name, home in KEPT.items():
        for end in ends:
            text, kept = (tmp_path / (name + end)).read_text(), home / (name + end)
            assert kept.read_text() == text, f"{kept.name} is stale; run `make proto`"
