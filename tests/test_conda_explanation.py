"""What rattler draws of a failure comes to a sentence."""

from __future__ import annotations

import time

import pytest

from envd.lock.conda_explanation import explain


def test_what_nobody_else_asks_for_is_said_to_be_asked_for() -> None:
    found = explain(
        "Cannot solve the request because of: The following packages are incompatible\n"
        "├─ word <2 can be installed with any of the following options:\n"
        "│  └─ word 1.0\n"
        "└─ word >=2 cannot be installed because there are no viable options:\n"
        "   └─ word 2.0, which conflicts with the versions reported above.\n"
    )

    assert (found.text, found.names) == ("word <2 is asked for; word >=2 is asked for", ("word",))


DEAD = "cannot be installed because there are no viable options:"
WALL = f"""\
Cannot solve the request because of: new * {DEAD}
└─ new 0.9 would require
   └─ nope *, for which no candidates were found.
The following packages are incompatible
├─ python 3.7.* {DEAD}
│  ├─ python 3.7.16, which conflicts with the versions reported above.
│  └─ python 3.7.0, which conflicts with the versions reported above.
├─ con * can be installed with any of the following options:
│  └─ con 1.0 would constrain
│     └─ scipy <1.20, which conflicts with any installable versions previously reported
└─ new * {DEAD}
   └─ new 1.0 would require
      └─ numpy >=1.22, which {DEAD}
"""
BRANCH = """\
         ├─ numpy 1.22.0 | 1.22.1 | ... | 1.22.{0} would require
         │  └─ python >=3.{0},<3.{0}.0a0, which {1}
         │     └─ python 3.{0}.2, which conflicts with the versions reported above.
"""


def test_a_wall_of_branches_comes_to_a_sentence() -> None:
    branches = "".join(BRANCH.format(number, DEAD) for number in range(4, 500))

    found = explain(WALL + branches)

    assert found.text == (
        "new 0.9 needs nope, which is not there; python 3.7.* is asked for; con 1.0 rules out all "
        "but scipy <1.20; new 1.0 needs numpy >=1.22; numpy 1.22.0 | 1.22.1 | ... | 1.22.4 needs "
        "python >=3.4,<3.4.0a0; numpy 1.22.0 | 1.22.1 | ... | 1.22.5 needs python "
        ">=3.5,<3.5.0a0; numpy 1.22.0 | 1.22.1 | ... | 1.22.6 needs python >=3.6,<3.6.0a0"
    )
    assert found.names == ("con", "new", "nope", "numpy", "python", "scipy")


@pytest.mark.parametrize(
    "drawing", ["", "└─└─ ", "what nobody knows", "│  " * 2000 + "x", "x\n" * 9999]
)
def test_what_is_no_such_wall_is_cut_short(drawing: str) -> None:
    began = time.process_time()

    assert len(explain(drawing).text) < 1300

    assert time.process_time() - began < 1
