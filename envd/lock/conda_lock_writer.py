"""The program that writes `conda-lock.yml`, by conda-lock.

Its request is what `envd.lock.conda_lock_file.text` makes; the answer is the text.
"""

from __future__ import annotations

import tempfile
from typing import Any

from envd.lock import conda_lock_api
from envd.lock.conda import CondaQuestion
from envd.lock.rattler_program import answer
from envd.spec.conda_package import conda_package


def write(request: dict[str, Any]) -> str:
    """Return the text of a lock."""
    tempfile.tempdir = request["scratch"]
    question = CondaQuestion(**request["question"])
    given = request["packages"]
    locked = conda_lock_api.lock(
        question,
        lambda platform: [conda_lock_api.action(conda_package(one)) for one in given[platform]],
        conda_lock_api.default_virtual_packages(),
    )
    return conda_lock_api.text(locked, request["pip"])


if __name__ == "__main__":
    answer(write)
