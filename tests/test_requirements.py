"""Requirement files from strangers: what is read, what is the same, and what is refused."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from envd.errors import ModelInvalidError, PolicyDeniedError
from envd.settings.sections import Security
from envd.spec import Python, Requirement, requirement, requirement_file
from envd.spec.place import Place
from envd.spec.policy import Policy
from envd.spec.requirement_file import Requirements

PYTHON = Python("cpython", "3.11.7", "cpython-311-x86_64-linux-gnu", "linux-x86_64", "glibc-2.36")
DEV = Policy("dev", Security(), {})
STANDARD = Policy("standard", Security(), {})


def read(folder: Path, content: str | bytes, policy: Policy = DEV, **included: str) -> Requirements:
    """Read *content* as a model's requirement file, with other files beside it."""
    data = content if isinstance(content, bytes) else content.encode()
    (folder / "requirements.txt").write_bytes(data)
    for name, text in included.items():
        (folder / f"{name}.txt").write_text(text)
    return requirement_file.read(folder, "requirements.txt", policy)


def texts(found: Requirements) -> list[str]:
    return [one.text for one in found.requirements]


def refusal(
    folder: Path, content: str | bytes, policy: Policy = DEV, **included: str
) -> ModelInvalidError:
    with pytest.raises(ModelInvalidError) as caught:
        read(folder, content, policy, **included)
    return caught.value


def denial(folder: Path, content: str, policy: Policy = STANDARD) -> PolicyDeniedError:
    with pytest.raises(PolicyDeniedError) as caught:
        read(folder, content, policy)
    return caught.value


def canonical(text: str) -> Requirement:
    return requirement.parse(Place(Path("model"), "requirements.txt", 1), text)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("six\nnumpy", ["six", "numpy"]),
        ("six\r\nnumpy\r\n", ["six", "numpy"]),
        ("\n\n  six  \n\n", ["six"]),
        ("", []),
        ("# six\n  # numpy\n", []),
        ("six # six==1.0\n", ["six"]),
        ("six\t#six==1.0", ["six"]),
        (b"\xef\xbb\xbfsix\n", ["six"]),
        ("six \\\n>=1,\\\n<2\nnumpy", ["six<2,>=1", "numpy"]),
        ("six \\", ["six"]),
        ("six \\\n# a comment ends it\nnumpy", ["six", "numpy"]),
        ("# a comment is not continued \\\nsix", ["six"]),
        ("six # neither is this one \\\nnumpy", ["six"]),
        ("six (>=1,<2)", ["six<2,>=1"]),
        ("six;python_version<'3.8'", ['six; python_version < "3.8"']),
    ],
)  # fmt: skip
def test_a_file_is_read_line_by_line(
    tmp_path: Path, content: str | bytes, expected: list[str]
) -> None:
    assert texts(read(tmp_path, content)) == expected


@pytest.mark.parametrize(
    "line",
    ["-r more.txt", "-rmore.txt", "-r  ./more.txt", "--requirement more.txt",
     "--requirement=more.txt", "-r sub/../more.txt # why"],
)  # fmt: skip
def test_every_spelling_of_an_include_reads_the_file(tmp_path: Path, line: str) -> None:
    (tmp_path / "sub").mkdir()

    found = read(tmp_path, f"six\n{line}\nscipy", more="numpy\n-c limits.txt", limits="pandas<2")

    assert texts(found) == ["six", "numpy", "scipy"]
    assert [one.text for one in found.constraints] == ["pandas<2"]


@pytest.mark.parametrize(
    "line", ["-c more.txt", "-cmore.txt", "--constraint more.txt", "--constraint=more.txt"]
)
def test_all_that_a_constraint_file_holds_are_constraints(tmp_path: Path, line: str) -> None:
    found = read(tmp_path, f"six\n{line}", more="numpy\n-r even_this.txt", even_this="pandas<2")

    assert texts(found) == ["six"]
    assert [one.text for one in found.constraints] == ["numpy", "pandas<2"]


def test_an_include_is_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "inner.txt").write_text("numpy\n-r beside.txt\n-r ../outer.txt\n")
    (tmp_path / "sub" / "beside.txt").write_text("scipy\n")

    assert texts(read(tmp_path, "-r sub/inner.txt", outer="six")) == ["numpy", "scipy", "six"]


def test_a_file_may_be_included_twice(tmp_path: Path) -> None:
    found = read(tmp_path, "-r a.txt\n-r b.txt", a="-r c.txt", b="-r c.txt", c="six")

    assert texts(found) == ["six", "six"]


@pytest.mark.parametrize(
    ("content", "more"),
    [
        ("-r requirements.txt", ""),
        ("-c ./requirements.txt", ""),
        ("-r more.txt", "-r requirements.txt"),
        ("-c more.txt", "-r sub/../more.txt"),
    ],
)
def test_a_circle_of_includes_is_refused(tmp_path: Path, content: str, more: str) -> None:
    assert "includes itself" in refusal(tmp_path, content, more=more).message


def test_a_circle_through_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to("requirements.txt")

    assert "`link.txt` includes itself" in refusal(tmp_path, "-r link.txt").message


@pytest.mark.parametrize(("depth", "is_read"), [(5, True), (6, False)])
def test_includes_nest_so_deep_and_no_deeper(tmp_path: Path, depth: int, *, is_read: bool) -> None:
    files = {f"f{number}": f"-r f{number + 1}.txt" for number in range(1, depth)}
    files[f"f{depth}"] = "six"

    if is_read:
        assert texts(read(tmp_path, "-r f1.txt", **files)) == ["six"]
    else:
        error = refusal(tmp_path, "-r f1.txt", **files)
        assert "f5.txt`, line 1: `f6.txt` is nested deeper than 5 files" in error.message


@pytest.mark.timeout(20)
def test_files_that_multiply_by_including_each_other_are_refused(tmp_path: Path) -> None:
    # 1,000 ** 4 files of nothing would be read.
    files = {f"f{number}": f"-r f{number + 1}.txt\n" * 1_000 for number in range(1, 5)}

    error = refusal(tmp_path, "-r f1.txt", **files, f5="")

    assert "it is over 100 files" in error.message


def test_more_files_than_any_model_has_are_refused(tmp_path: Path) -> None:
    found = read(tmp_path, "-r more.txt\n" * 99, more="six")
    error = refusal(tmp_path, "-r more.txt\n" * 100)

    assert len(found.requirements) == 99
    assert (
        "requirements.txt`, line 100: with what it includes it is over 100 files" in error.message
    )


@pytest.mark.timeout(20)
def test_more_lines_than_any_model_has_are_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, "-r many.txt\n-r many.txt", many="#\n" * 30_000)

    assert "requirements.txt`, line 2: with what it includes" in error.message
    assert "50000 lines" in error.message


def test_a_long_file_takes_no_longer_than_it_should(tmp_path: Path) -> None:
    before = time.process_time()

    found = read(tmp_path, "six\n" * 10_000 + f"six{' ' * 60_000}; os_name != 'nt'\n")

    assert len(found.requirements) == 10_001
    assert time.process_time() - before < 3


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("../outside.txt", "leads out of the model"),
        ("sub/../../outside.txt", "leads out of the model"),
        ("link.txt", "leads out of the model"),
        ("{absolute}", "is not a relative path"),
        ("missing.txt", "is not in the model"),
        ("a\0b", "is not a relative path"),
        ("https://example.org/r.txt", "of a URL"),
        ("file:///tmp/r.txt", "of a URL"),
    ],
)
@pytest.mark.parametrize("option", ["-r ", "-c ", "-r", "--requirement=", "--constraint "])
def test_only_files_of_the_model_may_be_included(
    tmp_path: Path, option: str, target: str, why: str
) -> None:
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    outside = tmp_path / "outside.txt"
    outside.write_text("secret\n")
    (model / "link.txt").symlink_to(outside)

    error = refusal(model, option + target.format(absolute=outside))

    assert why in error.message
    assert "secret" not in error.message


@pytest.mark.parametrize(
    "line",
    [
        "six==${SECRET}",
        "--index-url https://${SECRET}@host/simple",
        "${SECRET}",
        "-r ${SECRET}/r.txt",
        "${six # ${SECRET}\\\n-",
    ],
)
def test_variables_are_not_expanded_unless_they_are_listed(tmp_path: Path, line: str) -> None:
    environ = {"SECRET": "1.16.0", "OTHER": "x"}

    for profile in ("dev", "standard"):
        policy = Policy(profile, Security(variables=("OTHER",)), environ)
        error = denial(tmp_path, f"numpy\n{line.replace('# ', '')}", policy)

        assert "requirements.txt`, line 2: the variable `${" in error.message
        assert error.metadata["setting"] == "security.variables"
        assert "1.16.0" not in str(error.document())


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("--trusted-host host", "--trusted-host"),
        ("--use-feature=fast-deps", "--use-feature"),
        ("--no-deps", "--no-deps"),
        ("--no-index=yes", "--no-index"),
        ("--pre six", "--pre"),
        ("-i", "-i"),
        ("--no-binary", "--no-binary"),
        ("--only-binary six --pre", "--only-binary"),
        ("--index https://user:s3cret@host", "--index"),
        ("-", "-"),
        ("-r", "-r"),
        ("-e", "-e"),
    ],
)
def test_other_options_are_refused_by_name_and_place(
    tmp_path: Path, line: str, option: str
) -> None:
    error = refusal(tmp_path, f"six\n\n# comment\n{line}\n")

    named = {"-i": "--index-url"}.get(option, option)
    assert f"{tmp_path}/requirements.txt`, line 4: the option `{named}`" in error.message
    assert error.metadata["line"] == "4"
    assert error.metadata["option"] == named
    assert "s3cret" not in str(error.document())


@pytest.mark.parametrize(
    "option", ["--global-option=x", "--config-settings a=b", "--install-option x"]
)
def test_options_of_a_requirement_are_refused(tmp_path: Path, option: str) -> None:
    assert "is not a requirement" in refusal(tmp_path, f"six==1.0 {option}").message


def test_a_refusal_in_an_included_file_names_that_file(tmp_path: Path) -> None:
    error = refusal(tmp_path, "-r more.txt", more="six\nnumpy \\\n  ==\\\n  what\n")

    assert "more.txt`, line 2: `numpy" in error.message
    assert (error.metadata["path"], error.metadata["line"]) == ("more.txt", "2")


@pytest.mark.parametrize(
    "line",
    ["six#egg=six", "six=1.0", "six 1.0", "six==", "==1.0", "six; nonsense", "six[a",
     "six>=1.0 <2", "$SIX", "*"],
)  # fmt: skip
def test_what_is_no_requirement_is_refused(tmp_path: Path, line: str) -> None:
    error = refusal(tmp_path, f"numpy\n{line}")

    assert f"requirements.txt`, line 2: `{line}` is not a requirement" in error.message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("six>=1.*", "six>=1"),
        ("six>=1.*,<2.*", "six<2,>=1"),
        ("pytz>=2004d", "pytz"),
        ("torch>=1.0+cpu", "torch>=1"),
        ("six (>=1.*)", "six>=1"),
        ("six[a]>=1.*; os_name == 'a'", 'six[a]>=1; os_name == "a"'),
    ],
)
def test_specifiers_from_before_pep_440_are_read_where_they_are_clear(
    tmp_path: Path, line: str, expected: str
) -> None:
    found = read(tmp_path, line)

    assert texts(found) == [expected]
    assert [note.code for note in found.notes] == ["SPECIFIER_READ"]


@pytest.mark.parametrize(
    "line", ["pytz>dev", "torch==1.0.0-cuda-10", "old==2004d-final", "a<=1.*", "b==1.0.post*"]
)
def test_specifiers_from_before_pep_440_are_refused_clearly(tmp_path: Path, line: str) -> None:
    error = refusal(tmp_path, line)

    assert f"line 1: `{line}` is not a requirement: " in error.message
    assert error.metadata["requirement"] == line


@pytest.mark.parametrize(
    "line",
    [
        "six==" + "9" * 60_000,
        "six; " + "(" * 5_000 + "python_version < '3'" + ")" * 5_000,
        "(" * 60_000,
        "six; os_name == 'a\\x22b\\x27c'",
    ],
)
def test_what_breaks_the_parser_is_refused_in_few_words(tmp_path: Path, line: str) -> None:
    error = refusal(tmp_path, line)

    assert "is not a requirement" in error.message
    assert len(error.message) < 1_000
    assert len(error.metadata["requirement"]) < 1_000


@pytest.mark.parametrize(
    ("marker", "why"),
    [
        ('os_name ~= "posix"', "Undefined"),
        ('"x" ~= platform_release', "Undefined"),
        ('"a" in extras', "'extras' means something in a lock only"),
        ('"d" in dependency_groups', "'dependency_groups' means something in a lock only"),
    ],
)
@pytest.mark.parametrize("what", ["six", "six @ https://host/six-1.0.zip"])
def test_a_marker_that_cannot_be_evaluated_is_refused(
    tmp_path: Path, what: str, marker: str, why: str
) -> None:
    error = refusal(tmp_path, f"numpy\n{what} ; {marker}")

    assert "requirements.txt`, line 2: " in error.message
    assert why in error.message


@pytest.mark.parametrize("line", ["six>=1;", "six>=1 ; ", "six (>=1);"])
def test_a_semicolon_without_a_marker_means_nothing(tmp_path: Path, line: str) -> None:
    assert texts(read(tmp_path, line)) == ["six>=1"]


def test_two_semicolons_are_no_requirement(tmp_path: Path) -> None:
    assert "is not a requirement" in refusal(tmp_path, "six>=1;;").message


@pytest.mark.parametrize("option", ["--no-binary", "--only-binary"])
@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ("{0} :none:", ()),
        ("{0} six\n{0} :none:", ()),
        ("{0} :all:\n{0} :none:\n{0} numpy", ("numpy",)),
        ("{0} six,:none:,numpy", ("numpy",)),
        ("{0} six\n-r more.txt", ("numpy",)),
    ],
)
def test_none_takes_back_what_was_said_of_forms_before(
    tmp_path: Path, option: str, lines: str, names: tuple[str, ...]
) -> None:
    other = "--only-binary" if option == "--no-binary" else "--no-binary"
    more = f"{option} :none:\n{option} numpy"

    found = read(tmp_path, f"{other} scipy\n{lines.format(option)}", more=more).options

    ours, others = found.no_binary, found.only_binary
    if option == "--only-binary":
        ours, others = others, ours
    assert (ours, others) == (names, ("scipy",))


@pytest.mark.parametrize("character", ["\\n", "\\r", "\\x0a", "\\u000a", "\\N{LINE FEED}", "\x1b"])
def test_no_requirement_reaches_over_into_another_line(tmp_path: Path, character: str) -> None:
    # `packaging` evaluates the escapes in a marker's text.
    evil = "six; os_name != 'a\"{}--index-url http://host/{}six; os_name != \"b'"

    error = refusal(tmp_path, evil.format(character, character))

    assert "is not a requirement: it holds the character" in error.message


def test_a_text_of_several_lines_is_no_requirement() -> None:
    entries = ["six", "six; os_name == 'a\n--index-url http://host/'"]

    with pytest.raises(ModelInvalidError, match=r"conda\.yaml`, line 2: "):
        requirement_file.read_entries(Path("model"), "conda.yaml", entries, DEV)


def test_hashes_are_kept_and_sorted(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "Six==1.0 \\\n    --hash=sha256:bb \\\n    --hash sha256:AA ; python_version > '3'\nnumpy",
    )

    assert found.requirements == (
        Requirement("six", 'six==1; python_version > "3"', ("sha256:aa", "sha256:bb")),
        Requirement("numpy", "numpy", ()),
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Six", "six"),
        ("scikit_learn", "Scikit.Learn"),
        ("a--b", "a_b"),
        ("six==1.0", "six==1.0.0"),
        ("six==1.0", "six == 1"),
        ("six==1.0", "six (==1.0)"),
        ("six==1.0", "six==v1.0"),
        ("six==1.0", "six==1.0,==1.0.0"),
        ("six==1.0rc1", "six==1.0-RC.1"),
        ("six==1.0.post1", "six==1.0-1"),
        ("six==1.0+cpu", "six==1.0+CPU"),
        ("six>=1,<2", "six<2.0, >=1.0"),
        ("six[b,a]", "six[A, b]"),
        ("six[a_c]", "six[a-c]"),
        ("six; python_version < '3.8'", 'six ;python_version<"3.8"'),
        ("six; (os_name == 'a')", "six; os_name == 'a'"),
        ("six==1 --hash=sha256:a --hash=sha256:b", "six==1 --hash=sha256:B --hash=sha256:A"),
    ],
)
def test_requirements_that_mean_the_same_are_equal(one: str, other: str) -> None:
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("six", "sax"),
        ("six", "six==1.0"),
        ("six==1.0", "six==1.0.1"),
        ("six==1.0", "six>=1.0"),
        ("six==1.0", "six===1.0"),
        ("six===1.0", "six===1.0.0"),
        ("six~=1.4", "six~=1.4.0"),
        ("six==1.0", "six==1.0.*"),
        ("six==1.0.*", "six==1.*"),
        ("six==1.0", "six==1.0+cpu"),
        ("six==1.0", "six==1!1.0"),
        ("six==1.0", "six==1.0.post1"),
        ("six[a]", "six"),
        ("six[a]", "six[a,b]"),
        ("six; python_version < '3.8'", "six; python_version < '3.9'"),
        ("six==1 --hash=sha256:a", "six==1 --hash=sha256:b"),
        ("six==1 --hash=sha256:a", "six==1"),
    ],
)
def test_requirements_that_differ_are_not_equal(one: str, other: str) -> None:
    assert canonical(one) != canonical(other)


@pytest.mark.parametrize(
    ("text", "pin"),
    [
        ("six==1.16.0", "1.16"),
        ("six[a,b]==1.0; python_version < '3'", "1"),
        ("six<2,==1.5", "1.5"),
        ("six==1!2.0", "1!2"),
        ("six==1.0+cpu", "1+cpu"),
        ("six==1.0.*", None),
        ("six~=1.0", None),
        ("six===1.0", "1.0"),
        ("six>=1.0", None),
        ("six", None),
        ("six; os_name == 'a==1'", None),
        ("six>=1; python_version == '3.8'", None),
    ],
)
def test_a_pin_is_one_version_and_no_other(text: str, pin: str | None) -> None:
    assert canonical(text).pin == pin
