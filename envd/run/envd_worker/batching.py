"""Puts the inputs of several requests into one, and takes the answer apart again.

Only for models that are declared row-independent: what a row is answered, its type
included, is up to that row alone, and not to where it stands. What is joined must be what
each request would have been by itself, so only inputs of one form are: the same columns,
types and shapes, nothing that joining would widen (an integer column beside one with a
missing value) and nothing whose type is up to its values (an object column of several).
What remains is rounding: a product of matrices may differ in its last digits by how many
rows it has.
"""

import sys

from .blocks import joined

_INT64 = 1 << 63


class Apart(Exception):
    """These cannot be answered together."""


def fits(one, other):
    """Whether two Inputs may go into one call."""
    if one.is_chat or other.is_chat:
        return False
    try:
        form = _form_of(one)
        return form is not None and form == _form_of(other) and _same(one.params, other.params)
    except (TypeError, RecursionError):
        # Types of two libraries that cannot be compared are not the same; nor is what is nested
        # more deeply than can be looked at.
        return False


def join(inputs):
    """Return the data of all *inputs*, and how many rows each has.

    Raises:
        Apart: they do not make one input of the same form.
    """
    if inputs[0].block:
        blocks = [one.block for one in inputs]
        return joined(blocks).table(), [one.rows for one in blocks]
    parts = [one.data for one in inputs]
    try:
        if isinstance(parts[0], list):
            whole = [row for part in parts for row in part]
        elif isinstance(parts[0], dict):
            whole = {key: _joined([part[key] for part in parts]) for key in parts[0]}
        elif _is(parts[0], "numpy", "ndarray"):
            whole = _joined(parts)
        else:
            whole = sys.modules["pandas"].concat(parts, ignore_index=True)
        is_same = _form(whole) == _form_of(inputs[0])
    except Exception as error:
        raise Apart("the inputs cannot be joined: %s" % error)
    if not is_same:
        raise Apart("joined, the inputs are of another form")
    return whole, [_rows(one) for one in parts]


def split(raw, sizes):
    """Return the answer *raw* in parts of *sizes* rows.

    Raises:
        Apart: it has not one row for each row of the input.
    """
    if type(raw) is dict and raw:
        parts = {key: split(one, sizes) for key, one in raw.items() if _is(one, "numpy", "ndarray")}
        if len(parts) != len(raw):
            raise Apart("the answer has other things than arrays")
        return [{key: one[at] for key, one in parts.items()} for at in range(len(sizes))]
    is_table = _is(raw, "pandas", "DataFrame") or _is(raw, "pandas", "Series")
    is_array = _is(raw, "numpy", "ndarray") and raw.ndim
    if not (is_table or is_array or type(raw) is list) or len(raw) != sum(sizes):
        raise Apart("the answer has not one row for each row")
    rows, parts, start = raw.iloc if is_table else raw, [], 0
    for size in sizes:
        parts.append(rows[start : start + size])
        start += size
    return parts


def _form_of(one):
    """Return the form of an Input, which is found out once."""
    if one.form is False:
        one.form = one.block.form if one.block else _form(one.data)
    return one.form


def _form(data):
    """Return what must be the same of two inputs, or None if this one is not to be joined."""
    if not hasattr(data, "__len__") or not len(data):
        return None
    if type(data) is list:
        return _form_of_rows(data)
    if type(data) is dict:
        return _form_of_arrays(data)
    if _is(data, "numpy", "ndarray"):
        return None if data.dtype.hasobject else ("array", data.dtype, data.shape[1:])
    if _is(data, "pandas", "DataFrame"):
        return _form_of_table(data)
    return None


def _form_of_arrays(data):
    """Return the form of arrays by name, as tensors may come, if all have as many rows."""
    are_arrays = all(_is(one, "numpy", "ndarray") and one.ndim for one in data.values())
    if not are_arrays or len({len(one) for one in data.values()}) > 1:
        return None
    forms = [(key, _form(one)) for key, one in data.items()]
    return None if any(form is None for _, form in forms) else ("arrays", forms)


def _joined(arrays):
    return sys.modules["numpy"].concatenate(arrays)


def _rows(data):
    return len(next(iter(data.values())) if isinstance(data, dict) else data)


def _form_of_table(table):
    index, columns = table.index, [table.iloc[:, place] for place in range(table.shape[1])]
    # The rows of the whole are numbered from 0; whoever names theirs is asked alone.
    if type(index).__name__ != "RangeIndex" or index[0] != 0 or index[-1] != len(index) - 1:
        return None
    types = [_form_of_column(column) for column in columns]
    if any(one is None for one in types):
        return None
    return "table", type(table.columns), list(table.columns), types


def _form_of_column(column):
    if column.dtype != object:
        # To pandas, the order of categories that have none does not matter; their codes do.
        return "type", column.dtype, list(getattr(column.dtype, "categories", ()))
    kinds = {type(value) for value in column}
    return ("objects", kinds.pop()) if kinds in ({str}, {bytes}) else None


def _form_of_rows(rows):
    first = _form_of_value(rows[0])
    is_one = first is not None and all(_form_of_value(one) == first for one in rows[1:])
    return ("rows", first) if is_one else None


def _form_of_value(value):
    if isinstance(value, int) and not isinstance(value, bool):
        return int if -_INT64 <= value < _INT64 else None
    if isinstance(value, dict):
        forms = [(key, _form_of_value(one)) for key, one in value.items()]
        return None if any(form is None for _, form in forms) else ("object", forms)
    if isinstance(value, list):
        if not value:
            return "empty"
        forms = [_form_of_value(one) for one in value]
        return None if any(form is None for form in forms) else ("list", forms)
    return type(value)


def _same(one, other):
    """Whether two params are the same, 1 and True and 1.0 being three."""
    return repr(one) == repr(other)


def _is(value, module, name):
    """Whether *value* is just of that class, which nobody needs to have imported."""
    return type(value) is getattr(sys.modules.get(module), name, None)
