"""Tensors as the daemon and a worker tell each other of them.

A payload of the content type `protocol.TENSORS` is the length of a header in 4 bytes, big
endian, the header, and buffers. The header is the JSON of a request or an answer of the Open
Inference Protocol's REST API; a tensor whose parameter `binary_data_size` says how long it is
has its elements in the next of the buffers, all others in `data`, flat or nested
(https://github.com/kserve/open-inference-protocol: binary tensor data). In a buffer they are
little endian, row after row, and those of BYTES each after its size in 4 bytes.

The daemon imports this, too.
"""

import array
import json
import struct
import sys

_PREFIX, _SIZE = struct.Struct("!I"), struct.Struct("<I")
# How each datatype is called by `array` and `struct`, and how long an element is.
CODES = {
    "BOOL": ("B", 1), "UINT8": ("B", 1), "UINT16": ("H", 2), "UINT32": ("I", 4),
    "UINT64": ("Q", 8), "INT8": ("b", 1), "INT16": ("h", 2), "INT32": ("i", 4),
    "INT64": ("q", 8), "FP16": ("e", 2), "BF16": (None, 2), "FP32": ("f", 4), "FP64": ("d", 8),
}  # fmt: skip
# The parameter of Triton's that says where else elements are, or are to be.
SHARED_MEMORY = "shared_memory_region"
FLOATS = frozenset(("FP16", "FP32", "FP64"))
# As many as numpy has; more elements than memory has addresses are none that were sent.
MAX_DIMENSIONS, _MOST = 32, 1 << 62
# Very many short texts take their room many times over, if all are in hand at once.
_AT_ONCE = 1 << 14
# Numbers in the order in which they are sent, and in which this machine has them.
_IS_SWAPPED = sys.byteorder == "big"


class Malformed(Exception):
    """What was sent are no tensors."""


def sealed(header, buffers=()):
    """Return the payload of the object *header* and the *buffers* it says how long are."""
    text = json.dumps(header, allow_nan=False).encode()
    return b"".join([_PREFIX.pack(len(text)), text, *buffers])


def opened(payload, most=_MOST):
    """Return the object that is the header of *payload*, and the rest of it.

    Raises:
        Malformed: there is none, or one of over *most* bytes.
    """
    view = memoryview(payload)
    if len(view) < _PREFIX.size:
        raise Malformed("there is no header")
    end = _PREFIX.size + _PREFIX.unpack_from(view)[0]
    if end > len(view) or end > most:
        raise Malformed("the header is cut off, or too long")
    try:
        header = json.loads(str(view[_PREFIX.size : end], "utf-8"))
    except (ValueError, RecursionError) as error:
        raise Malformed("the header is not JSON: %s" % error)
    if not isinstance(header, dict):
        raise Malformed("the header is not a JSON object")
    return header, view[end:]


class Tensor:
    """A tensor: its elements are bytes, `raw`, or of BYTES a list of bytes or texts, `texts`."""

    __slots__ = ("count", "datatype", "name", "parameters", "raw", "shape", "texts")

    def __init__(self, document, buffer):
        """Read what a header says of it in *document*; its elements are in *buffer*, if in any.

        Raises:
            Malformed: they are not as many as its shape says, or not of its datatype.
        """
        self.name, self.datatype = document.get("name"), document.get("datatype")
        if not isinstance(self.name, str):
            raise Malformed("a tensor has no name")
        self.shape, self.parameters = document.get("shape"), parameters_of(document, self.name)
        self.count = count(self.name, self.shape)
        self.raw = self.texts = None
        if self.datatype == "BYTES":
            self._read_texts(document, buffer)
        elif isinstance(self.datatype, str) and self.datatype in CODES:
            self._read_numbers(document, buffer)
        else:
            raise Malformed("the tensor `%s` has no datatype that is known" % self.name)

    def values(self):
        """Return its elements as a flat list."""
        return self.texts if self.raw is None else numbers(self.raw, self.datatype)

    def _read_texts(self, document, buffer):
        self.texts = self._listed(document) if buffer is None else texts(buffer, self.name)
        if not all(isinstance(one, (bytes, str)) for one in self.texts):
            raise Malformed("`%s` is BYTES, and has elements that are no texts" % self.name)
        # MLServer's clients may say how long texts are as well, and take one for its bytes.
        if len(self.texts) not in (1, self.count, *self.shape[:1]):
            self._refuse(len(self.texts))

    def _read_numbers(self, document, buffer):
        if buffer is None:
            values = self._listed(document)
            if len(values) != self.count:
                self._refuse(len(values))
            self.raw = memoryview(packed(values, self.datatype, self.name))
            return
        self.raw = buffer
        size = CODES[self.datatype][1]
        if len(buffer) != size * self.count:
            message = "`%s` has %d bytes; %s elements of %s in the shape %s take %d"
            more = self.count, self.datatype, self.shape, size * self.count
            raise Malformed(message % (self.name, len(buffer), *more))

    def _listed(self, document):
        if "data" not in document:
            raise Malformed("the tensor `%s` has no data" % self.name)
        return list(flat(document["data"]))

    def _refuse(self, count):
        message = "`%s` has %d elements; the shape %s takes %d"
        raise Malformed(message % (self.name, count, self.shape, self.count))


def parameters_of(document, name):
    """Return the parameters in *document*, an object or none; *name* is whose they are."""
    found = document.get("parameters")
    if found is not None and not isinstance(found, dict):
        raise Malformed("the parameters of `%s` are not a JSON object" % name)
    if SHARED_MEMORY in (found or {}):
        raise Malformed("envd has no shared memory for `%s`; send and take its elements" % name)
    return found or {}


def of(documents, rest):
    """Return the tensors that the list *documents* describes, whose buffers are *rest*.

    Raises:
        Malformed: they are none.
    """
    found, names = [], set()
    if not isinstance(documents, list):
        raise Malformed("there is no list of tensors")
    for one in documents:
        if not isinstance(one, dict):
            raise Malformed("a tensor is not a JSON object")
        size = parameters_of(one, one.get("name")).get("binary_data_size")
        buffer = None
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(rest):
                raise Malformed("the `binary_data_size` of `%s` is wrong" % one.get("name"))
            buffer, rest = rest[:size], rest[size:]
        found.append(Tensor(one, buffer))
        if found[-1].name in names:
            raise Malformed("two tensors are called `%s`" % found[-1].name)
        names.add(found[-1].name)
    if len(rest):
        raise Malformed("%d bytes are no tensor's" % len(rest))
    return found


def packed(values, datatype, name=""):
    """Return numbers as a buffer has them.

    Raises:
        Malformed: they are not of *datatype*.
    """
    code, _ = CODES[datatype]
    if code is None:
        raise Malformed("`%s` is BF16, which JSON has no form for; send it as binary data" % name)
    try:
        if datatype in FLOATS:
            values = [float("nan") if one is None else one for one in values]
        if datatype == "BOOL" and not all(one in (0, 1) for one in values):
            raise ValueError("it is neither true nor false")
        if code == "e":
            return struct.pack("<%de" % len(values), *values)
        found = array.array(code, values)
    except (TypeError, ValueError, OverflowError, struct.error) as error:
        raise Malformed("`%s` has an element that is no %s: %s" % (name, datatype, error))
    if _IS_SWAPPED:
        found.byteswap()
    return found.tobytes()


def numbers(raw, datatype):
    """Return the numbers in a buffer as a list."""
    code, size = CODES[datatype]
    if datatype == "BF16":
        # The upper half of an FP32.
        whole = packed([one << 16 for one in numbers(raw, "UINT16")], "UINT32")
        return numbers(whole, "FP32")
    if code == "e":
        return list(struct.unpack("<%de" % (len(raw) // size), raw))
    found = array.array(code)
    found.frombytes(raw)
    if _IS_SWAPPED:
        found.byteswap()
    return [one != 0 for one in found] if datatype == "BOOL" else found.tolist()


def texts(buffer, name=""):
    """Return the elements of a tensor of BYTES.

    Raises:
        Malformed: one is cut off.
    """
    found, place, end = [], 0, len(buffer)
    while place < end:
        start = place + _SIZE.size
        place = start + (_SIZE.unpack_from(buffer, place)[0] if start <= end else 0)
        if start > end or place > end:
            raise Malformed("the last element of `%s` is cut off" % name)
        found.append(bytes(buffer[start:place]))
    return found


def packed_texts(values):
    """Return elements of BYTES as a buffer has them."""
    found = bytearray()
    for start in range(0, len(values), _AT_ONCE):
        some = values[start : start + _AT_ONCE]
        found += b"".join([part for one in some for part in (_SIZE.pack(len(one)), one)])
    return bytes(found)


def nested(values, shape):
    """Return a flat list as one of lists, as *shape* says."""
    if len(shape) < 2 or not values:
        return values
    size = 1
    for one in shape[1:]:
        size *= one
    return [nested(values[at * size : (at + 1) * size], shape[1:]) for at in range(shape[0])]


def count(name, shape):
    """Return how many elements a tensor of *shape* has."""
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise Malformed("`%s` has no shape of at most %d sizes" % (name, MAX_DIMENSIONS))
    found = 1
    for one in shape:
        if type(one) is not int or not 0 <= one < _MOST:
            raise Malformed("`%s` has the shape %s; send sizes of 0 or more" % (name, shape))
        found *= one
    return found


def flat(data):
    """Yield what is in nested lists."""
    if not isinstance(data, list):
        yield data
        return
    for one in data:
        if isinstance(one, list):
            for value in flat(one):
                yield value
        else:
            yield one
