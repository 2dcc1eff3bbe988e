"""Run by an environment with mlflow: `compare_tables.py PACKAGES`, the folder of `envd_worker`.

Prints how many tables were made at once, and sees that MLflow makes the same of their JSON.
"""

import itertools
import random
import sys

import numpy as np
import pandas as pd
from mlflow.types import ColSpec, Schema
from mlflow.utils.proto_json_utils import dataframe_from_parsed_json

sys.path.insert(0, sys.argv[1])
from envd_worker import blocks, doubles

OPTIONAL = {"optional": True} if hasattr(ColSpec("double"), "optional") else {"required": False}
VALUES = (0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), 1, True, None, "1.5", [1.5], 2**60)


def schemas(names):
    """Return a schema of doubles, and some of which it is not all that is asked for."""
    doubles_only = [ColSpec("double", name) for name in names]
    last = names[-1]
    yield Schema(doubles_only)
    yield Schema([*doubles_only[:-1], ColSpec("double", last, **OPTIONAL)])
    yield Schema([*doubles_only[:-1], ColSpec("long", last)])


def documents(chance, names):
    """Return a table as `split` and as `records`, now and then one with something odd in it."""
    width, height = len(names), chance.randrange(4)
    odd = chance.random() < 0.3
    pick = VALUES if odd else VALUES[:6]
    data = [[chance.choice(pick) for _ in range(width)] for _ in range(height)]
    said = chance.choice([names, names, names, names[::-1], [*names[:-1], "other"]])
    yield "split", {"columns": said, "data": data}
    yield "split", {"columns": said, "data": data, "index": list(range(height))}
    yield "records", [dict(zip(said, row)) for row in data]  # noqa: B905


def made(value, orient, schema):
    """Return what MLflow makes of *value*."""
    try:
        return dataframe_from_parsed_json(value, orient, schema)
    except Exception:  # noqa: BLE001
        return None


def compare_joined(chance):
    """See that tables made of joined blocks are what the tables would be, joined."""
    for dtype in ("?", "i1", "u2", "<i4", "<i8", "<u8", "<f2", "<f4", "<f8"):
        sizes = [chance.randrange(1, 4) for _ in range(3)]
        made = [np.arange(2 * size).reshape(2, size).astype(dtype) for size in sizes]
        parts = [blocks.Block(["a", "b"], one) for one in made]
        apart = pd.concat([one.table() for one in parts], ignore_index=True)
        pd.testing.assert_frame_equal(blocks.joined(parts).table(), apart, check_exact=True)
        columns = {name: np.concatenate([one[at] for one in made]) for at, name in enumerate("ab")}
        pd.testing.assert_frame_equal(apart, pd.DataFrame(columns), check_exact=True)


def main():
    """Compare."""
    chance, at_once = random.Random(7), 0
    for _, names in itertools.product(range(60), (["a"], ["a", "b", "c d"])):
        for schema in schemas(names):
            columns = doubles.names_of(schema)
            for orient, value in documents(chance, names):
                block = doubles.block(value, orient, columns) if columns else None
                if block is not None:
                    at_once += 1
                    found = block.table()
                    expected = made(value, orient, schema)
                    pd.testing.assert_frame_equal(found, expected, check_exact=True)
                    assert type(found.columns) is type(expected.columns)
                    assert found.columns.dtype == expected.columns.dtype
                    assert found.to_numpy().flags == expected.to_numpy().flags or len(found) < 2
    compare_joined(chance)
    print(at_once)


main()
