"""Versions as conda orders them: what rattler says of them, envd says too."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

from envd.spec import conda_version

VERSIONS = (
    "0.1", "1", "1.0", "1.0.0", "1.0a1", "1.0b1", "1.0rc1", "1.0.dev1", "1.0dev", "1.0.post1",
    "1.0.1", "1.0.1a", "1.0.1_", "1.1.1", "1.1.1w", "9e", "2023c", "1!0.5", "1!1.0",
    "1.0+local", "1.0+local.2", "1.0+2", "1_0", "1.02", "1.2", "1.10", "3.9", "3.9.1", "3.9.18",
    "3.10.0", "5.3_1", "2.0.0.post20210125", "1.0alpha", "a1", "dev",
)  # fmt: skip
TERMS = ("=={}", "!={}", ">={}", ">{}", "<={}", "<{}", "{}.*", "!={}.*")
EXPRESSIONS = [
    *(term.format(one) for term in TERMS for one in ("1.0", "1.0.1", "1.1.1w", "3.9", "1!0.5")),
    "~=1.0", "~=1.0.1", "~=3.9.1", ">=1.0,<1.1", ">=3.9,!=3.9.18,<4", "==1.0|>=9", "<1.0|>1.1,<3",
]  # fmt: skip
_RATTLER = """
import json, os, sys
import rattler

versions, expressions = json.load(sys.stdin)
parsed = {one: rattler.Version(one) for one in versions}
records = {
    one: rattler.PackageRecord(name="x", version=one, build=rattler.BuildString("0"),
                               build_number=0, subdir="noarch", arch=None, platform=None)
    for one in versions
}
specs = {one: rattler.MatchSpec(f"x {one}") for one in expressions}
print(json.dumps({
    "order": [[(a > b) - (a < b) for b in parsed.values()] for a in parsed.values()],
    "allowed": [[spec.matches(one) for one in records.values()] for spec in specs.values()],
}), flush=True)
os._exit(0)
"""


def test_versions_are_ordered_and_allowed_as_rattler_does() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RATTLER],
        input=json.dumps([VERSIONS, EXPRESSIONS]),
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = json.loads(done.stdout)

    # With `>=` and `<=` both: whether one comes before, after, or is the same.
    order = [
        conda_version.allows(f">={other}", one) - conda_version.allows(f"<={other}", one)
        for one, other in itertools.product(VERSIONS, VERSIONS)
    ]
    assert order == list(itertools.chain(*theirs["order"]))
    for expression, allowed in zip(EXPRESSIONS, theirs["allowed"], strict=True):
        ours = [one for one in VERSIONS if conda_version.allows(expression, one)]
        assert ours == [one for one, is_it in zip(VERSIONS, allowed, strict=True) if is_it], (
            expression
        )


def test_an_empty_expression_allows_every_version() -> None:
    assert conda_version.allows("", "9e")
