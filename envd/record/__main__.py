"""Records what a question file describes, by the Python that the model is made with.

Run as a script: `python .../envd/record/__main__.py FILE`, whose answer replaces the
question. What envd needs comes behind all that this Python has, envd itself before it.
"""

import os
import sys

# Python puts the folder of a script first, and `code`, `secrets`, `signature` lie here.
sys.path[0] = os.getcwd()  # noqa: PTH109
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit("recording takes Python 3.11 or later; use another by --python")

import json  # noqa: E402

with open(sys.argv[1]) as file:  # noqa: PTH123
    question = json.load(file)
sys.path.insert(1, question["own"])
sys.path.append(question["needed"])

from envd.record import command  # noqa: E402

answer = command.answer(question)
with open(sys.argv[1], "w") as file:  # noqa: PTH123
    json.dump(answer, file)
