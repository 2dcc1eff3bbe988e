"""What a nasty model does, by name: this file becomes the model's own, beside its loader."""

import ctypes
import os
import resource
import signal
import socket
import struct
import sys
import time
from pathlib import Path

HEADER = struct.Struct("!QIBI")
DONE, FAILED, _, BEGUN, _, PART, ITEM = range(2, 9)
PART_BYTES = 1 << 18


def do(asked):
    """Do what is *asked*: the name of a deed, and what that needs to know."""
    deed, *given = asked
    return globals()[deed](*given)


def say(number):
    return [os.getpid(), number]


def take(text):
    return len(text)


def give(count):
    return "x" * count


# Ends.


def segfault(_):
    ctypes.string_at(0)


def leave(_):
    os._exit(7)


def take_memory(_):
    """Take ever more, in small pieces, until somebody says no."""
    taken = []
    while True:
        taken.append(bytearray(b"x" * (1 << 20)))


def take_addresses(_):
    """Take more than this process may have addresses for."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), before[1]))
    try:
        return len(bytearray(1 << 30))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# Hangs.


def compute(_):
    """Compute in C, with the interpreter's lock held, deaf to all that can be ignored."""
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        signal.signal(number, signal.SIG_IGN)
    return pow(3, 10**12)


def wait(_):
    """Wait in C, with every signal blocked."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        ctypes.CDLL(None).pause()


def freeze(_):
    os.kill(os.getpid(), signal.SIGSTOP)


def say_half(_):
    _socket().sendall(HEADER.pack(1 << 20, 1, DONE, 2) + b"{}half")
    time.sleep(600)


def hang_up(_):
    """Close the socket and live on."""
    os.close(_descriptor())
    time.sleep(600)


# What it survives.


def flood(_):
    for _ in range(20):
        os.write(1, b"flood\n" * 10_000)
        os.write(2, os.urandom(60_000))
    return "answered"


def forge(_):
    """Write answers where what is printed goes."""
    answer = _frame(1, DONE, b'{"seconds": 0, "notes": []}', b'{"predictions": "forged"}')
    for stream in (1, 2):
        os.write(stream, answer * 100)
    print("\0" * 100, answer, flush=True)
    return "answered"


def give_deep(_):
    found = []
    for _ in range(200_000):
        found = [found]
    return found


def raise_silently(_):
    class SilentError(Exception):
        def __str__(self):
            raise self

    raise SilentError


# What it says over the protocol's own socket.


def speak(word, _):
    head = b'{"seconds": 0, "notes": []}'
    said = {
        "unasked": _frame(0xFFFFFFFE, DONE, head, b"{}"),
        "batch": _frame(0, BEGUN, b'{"ids": [[], {}]}', b""),
        "kind": _frame(0, 77, b"{}", b""),
        "part": _frame(_number(), ITEM, b"{}", b"1"),
        "part unasked": _frame(0xFFFFFFFE, ITEM, b"{}", b"1"),
        "size": HEADER.pack(1 << 60, 1, DONE, 2) + b"{}",
        "deep": _frame(1, DONE, b"[" * 100_000, b""),
        "noise": os.urandom(4096),
    }[word]
    _socket().sendall(said)
    return "answered"


def stream(asked):
    """Yield an item, and then say over that socket what the second one asked is."""
    word, *_ = asked
    yield 0
    part, whole = _frame(_number(), PART, b"{}", b"1"), _frame(_number(), ITEM, b"{}", b"1")
    done = _frame(_number(), DONE, b'{"seconds": 0, "notes": []}', b"")
    _socket().sendall(
        {
            "large": _frame(_number(), PART, b"{}", b"x" * (PART_BYTES + 1)),
            "more than an item": _frame(_number(), PART, b"{}", b"x" * PART_BYTES) * 257,
            "more than can be counted": whole * 10_000,
            "no end": part + done,
            "after the end": done + whole,
            "of another": _frame(0xFFFFFFFE, ITEM, b"{}", b"1"),
        }[word]
    )
    time.sleep(600)


def answer(kind, head, _=None):
    """Answer the request under way, before its own answer comes."""
    kinds = {"DONE": DONE, "FAILED": FAILED}
    body = b'{"predictions": "forged"}'
    _socket().sendall(_frame(_number(), kinds[kind], head.encode(), body))
    return "answered"


def _number():
    """Return the id of the request under way, which whoever called this knows."""
    frame = sys._getframe()
    while not hasattr(frame.f_locals.get("request"), "number"):
        frame = frame.f_back
    return frame.f_locals["request"].number


def _frame(number, kind, head, body):
    return HEADER.pack(len(body), number, kind, len(head)) + head + body


def _socket():
    """Return the socket that the daemon speaks over."""
    return socket.socket(fileno=os.dup(_descriptor()))


def _descriptor():
    return next(int(one.name) for one in Path("/proc/self/fd").iterdir() if one.is_socket())


# Children.


def bomb(generations, _):
    """Fork, and let all of them fork, as long as they may; none ever ends."""
    for _ in range(generations):
        try:
            os.fork()
        except OSError:
            time.sleep(0.01)
    time.sleep(600)


def litter(count, path, then, _):
    """Leave children in sessions of their own, and children of theirs, that say so in a file."""
    said = Path(path)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for _ in range(count):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.setsid()
            os.write(file, b"%d\n" % os.getpid())
            time.sleep(600)
            os._exit(0)
    while len(said.read_text().splitlines()) < 2 * count:
        time.sleep(0.001)
    if then == "leave":
        os._exit(7)
    return "littered"
