"""How tests try what nobody would write: the same examples each time, unless more are wanted."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def tried(tries: int, strategy: st.SearchStrategy[Any], function: Any) -> None:
    """Give *function* so many examples; `ENVD_FUZZ=N` is N times as many, and not the same."""

    @settings(
        max_examples=tries * int(os.environ.get("ENVD_FUZZ", "1")),
        derandomize="ENVD_FUZZ" not in os.environ,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(value: Any) -> None:
        function(value)

    run()
