"""YAML from strangers: texts stay the texts they are, and nothing grows."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from envd.errors import ModelInvalidError
from envd.model import documents


def read(folder: Path, content: str | bytes) -> dict[str, documents.Document]:
    (folder / "file.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    return documents.read(folder, "file.yaml")


def refusal(folder: Path, content: str | bytes) -> ModelInvalidError:
    with pytest.raises(ModelInvalidError) as caught:
        read(folder, content)
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        "3.10",
        "on",
        "yes",
        "no",
        "0x1F",
        "1e3",
        ".nan",
        ".inf",
        "2020-01-01",
        "1_000",
        "012",
        "true",
    ],
)
def test_a_scalar_is_the_text_that_stands_there(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, f"key: {text}\n{text}: key\n") == {"key": text, text: "key"}


@pytest.mark.parametrize("null", ["null", "Null", "NULL", "~", ""])
def test_null_is_none_only_where_it_is_not_quoted(tmp_path: Path, null: str) -> None:
    found = read(tmp_path, f"bare: {null}\nsingle: '{null}'\ndouble: \"{null}\"\n")

    assert found == {"bare": None, "single": null, "double": null}


def test_lists_mappings_and_long_texts_are_read(tmp_path: Path) -> None:
    text = "a:\n- b: [1, two]\n- {c: d}\n-\nfolded: >-\n  one\n  line\nkept: |\n  two\n  lines\n"

    assert read(tmp_path, text) == {
        "a": [{"b": ["1", "two"]}, {"c": "d"}, None],
        "folded": "one line",
        "kept": "two\nlines\n",
    }


def test_the_marks_of_a_document_change_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "%YAML 1.1\n--- # first\na: 1\n...\n") == {"a": "1"}


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfa: 1\n", b"a: 1\r\n", b"a: 1", b"a: 1\r"])
def test_a_byte_order_mark_and_any_line_end_change_nothing(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content) == {"a": "1"}


def test_a_merge_key_is_a_key_like_any_other(tmp_path: Path) -> None:
    assert read(tmp_path, "<<: {a: 1}\n") == {"<<": {"a": "1"}}


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("a: &x 1\nb: *x\n", 2, "aliases (`*x`) are not allowed"),
        ("a: 1\nb: !!python/object/apply:os.system [id]\n", 2, "tags (`tag:yaml.org,2002:python"),
        ("a: !!str 1\n", 1, "tags (`tag:yaml.org,2002:str`) are not allowed"),
        ("a: ! b\n", 1, "tags (`!`) are not allowed"),
        ("%TAG ! tag:evil,1:\n---\na: !b {}\n", 3, "tags (`tag:evil,1:b`) are not allowed"),
        ("!!map {a: b}\n", 1, "tags (`tag:yaml.org,2002:map`) are not allowed"),
        ("a: 1\nb: 2\n'a': 3\n", 3, "the key `a` stands there twice"),
        ("a:\n  b: {c: 1, c: 2}\n", 2, "the key `c` stands there twice"),
        ("a: 1\n---\nb: 2\n", 2, "it holds more than one document"),
        ("a: 1\n---\n", 2, "it holds more than one document"),
        ("a: 1\n[b]: 2\n", 2, "a key is not a text"),
        ("a: 1\n? {b: c}\n: 2\n", 2, "a key is not a text"),
        ("null: 1\n", 1, "a key is not a text"),
        ("a: 1\nb: c: d\n", 2, "mapping values are not allowed"),
        ("a: 1\nb:\n\tc: 2\n", 3, "cannot start any token"),
        ("a: 1\nb: [\nc: 2\n}\n", 4, "did not find expected"),
        ("- a\n- b\n", 1, "it is not a mapping"),
        ("text\n", 1, "it is not a mapping"),
        ("null\n", 1, "it is not a mapping"),
        ("# nothing\n", 1, "it is not a mapping"),
        ("", 1, "it is not a mapping"),
        ("a: \0\n", 1, "unacceptable character"),
    ],
)
def test_what_is_refused_names_its_line(tmp_path: Path, text: str, line: int, why: str) -> None:
    error = refusal(tmp_path, text)

    assert f"`{tmp_path}/file.yaml`, line {line}: " in error.message
    assert why in error.message
    assert error.metadata == {"model": str(tmp_path), "path": "file.yaml", "line": str(line)}


@pytest.mark.parametrize(
    "text",
    ["a: " + "[" * 100 + "]" * 100, "a: " + "[" * 100_000, "a: " + "{a: " * 100_000,
     "- " * 100_000, "".join(" " * depth + "a:\n" for depth in range(100))],
)  # fmt: skip
def test_deep_nesting_is_refused(tmp_path: Path, text: str) -> None:
    assert "it is nested deeper than 50 levels" in refusal(tmp_path, text).message


def test_nesting_that_is_not_deep_is_read(tmp_path: Path) -> None:
    found: documents.Document = read(tmp_path, "a: " + "[" * 49 + "]" * 49)["a"]

    for _ in range(48):
        assert isinstance(found, list)
        found = found[0]
    assert found == []


@pytest.mark.parametrize("text", ["a:\n" + "- b\n" * 10_000, "a: [" + "b," * 10_000 + "]"])
def test_too_many_values_are_refused(tmp_path: Path, text: str) -> None:
    assert "it holds over 10000 values" in refusal(tmp_path, text).message


def test_as_many_values_as_a_real_file_has_are_read(tmp_path: Path) -> None:
    found = read(tmp_path, "dependencies:\n" + "- six\n" * 5_000)

    assert found == {"dependencies": ["six"] * 5_000}


def test_aliases_that_would_grow_to_gigabytes_cost_nothing(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 20):
        many = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} [{many}]")
    before = time.process_time()

    error = refusal(tmp_path, "\n".join(lines))

    assert "line 2: aliases (`*a0`) are not allowed" in error.message
    assert time.process_time() - before < 1


def test_a_number_of_a_hundred_thousand_digits_is_a_text(tmp_path: Path) -> None:
    # int() refuses it, and where it does not it takes seconds.
    number = "9" * 100_000

    assert read(tmp_path, f"python: {number}\n") == {"python": number}


@pytest.mark.parametrize(
    "content", [b"a: \xe9\n", b"\xff\xfea\x00:\x00 \x001\x00", b"a: \xed\xa0\x80\n", b"\x80"]
)
def test_what_is_not_utf8_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "is not UTF-8" in refusal(tmp_path, content).message


def test_every_text_knows_the_line_it_stands_in(tmp_path: Path) -> None:
    found = read(tmp_path, "# a\na: one\nb:\n- two\n- [three, four]\n- |\n  five\nc: ~\n")

    assert isinstance(found["b"], list)
    two, (three, four), five = found["b"]  # type: ignore[misc]
    lines = [documents.line_of(one) for one in (found["a"], two, three, four, five)]
    assert lines == [2, 4, 5, 5, 6]
    assert documents.line_of(found["c"]) == documents.line_of("a text of no file") == 0
