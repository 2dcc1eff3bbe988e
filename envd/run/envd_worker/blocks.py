"""Tables of numbers of one type, which are made when it is known what goes into one call.

A table costs more to make than all else that is done to a small request, and several are not
made to be put together.
"""

import sys


class Block:
    """A table that is yet to be made: its columns' names, and an array with a row for each."""

    def __init__(self, names, columns):
        """Keep the parts."""
        self._names, self._columns = names, columns
        self.rows = columns.shape[1]
        # What is the same of two that can be one; what has no rows is for itself.
        self.form = ("block", names, columns.dtype) if self.rows else None

    def table(self):
        """Return the table."""
        return sys.modules["pandas"].DataFrame(self._columns.T, columns=list(self._names))


def joined(blocks):
    """Return one of all the rows of *blocks*, which are of one form."""
    columns = sys.modules["numpy"].concatenate([one._columns for one in blocks], axis=1)
    return Block(blocks[0]._names, columns)
