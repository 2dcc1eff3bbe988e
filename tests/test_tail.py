"""Logs are read line by line, as they are written."""

from __future__ import annotations

from pathlib import Path

from envd.environments.tail import Tail


def test_lines_come_whole_and_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tail = Tail(log)
    assert tail.read() == []

    with log.open("w") as file:
        for text in ("one\ntw", "o\n", "", "three"):
            file.write(text)
            file.flush()
            if text == "one\ntw":
                assert tail.read() == ["one"]
        assert tail.read() == ["two"]

    assert tail.read() == []
    assert tail.rest() == ["three"]
    assert tail.rest() == []
    tail.close()


def test_the_next_build_begins_a_new_file(tmp_path: Path) -> None:
    log, beside = tmp_path / "log", tmp_path / "beside"
    log.write_text("of the first\nand more\n")
    tail = Tail(log)
    assert tail.read() == ["of the first", "and more"]

    for number in range(3):
        beside.write_text(f"of build {number}\n")
        beside.replace(log)
    gone = tail.read()
    log.unlink()

    assert gone == ["of build 2"]
    assert tail.read() == []
    tail.close()


def test_much_comes_in_parts_and_long_lines_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines = ["x" * 300_000, *(f"line {number}" for number in range(30_000))]
    log.write_text("".join(f"{line}\n" for line in lines))
    tail, parts = Tail(log), []

    while part := tail.read():
        parts.append(part)

    assert [line for part in parts for line in part] == lines
    assert max(map(len, parts)) < 10_000
    tail.close()
