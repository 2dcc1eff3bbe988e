"""Options and places in requirement files: indexes, URLs, repositories, the model's packages."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import resource
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from envd.errors import ModelInvalidError, PolicyDeniedError
from envd.settings.sections import Security
from envd.spec import Requirement, local, requirement_file
from envd.spec.options import Options
from envd.spec.place import Place
from envd.spec.policy import Policy
from envd.spec.requirement_file import Requirements
from envd.spec.urls import PYPI

DEV = Policy("dev", Security(), {})
HOST = "https://host/simple"
WHEEL = "six-1.0-py3-none-any.whl"
DIGEST = hashlib.sha256(b"wheel").hexdigest()


def read(folder: Path, content: str, policy: Policy = DEV, **included: str) -> Requirements:
    """Read *content* as a model's requirement file, with other files beside it."""
    (folder / "requirements.txt").write_text(content)
    for name, text in included.items():
        (folder / f"{name}.txt").write_text(text)
    # What a policy knows of local packages is good for one reading.
    fresh = Policy(policy.profile, policy.allowed, policy.environ)
    return requirement_file.read(folder, "requirements.txt", fresh)


def refusal(folder: Path, content: str) -> ModelInvalidError:
    with pytest.raises(ModelInvalidError) as caught:
        read(folder, content)
    return caught.value


def denial(folder: Path, content: str, policy: Policy) -> PolicyDeniedError:
    with pytest.raises(PolicyDeniedError) as caught:
        read(folder, content, policy)
    return caught.value


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (f"-i {HOST}", Options(index_url=HOST)),
        (f"--index-url={HOST}/", Options(index_url=HOST)),
        (f"--index-url = {HOST}", Options(index_url=HOST)),
        ("-i https://user:s3cret@HOST/simple", Options(index_url=HOST)),
        (f"-i https://other/simple\n-i {HOST}", Options(index_url=HOST)),
        ("-i https://other/simple\n-i https://PyPI.org/simple/", Options(index_url=PYPI)),
        (f"--extra-index-url {HOST}", Options(extra_index_urls=(HOST,))),
        (f"--extra-index-url {HOST}\n" * 2, Options(extra_index_urls=(HOST,))),
        ("-f https://host/page.html", Options(find_links=("https://host/page.html",))),
        ("--no-index", Options(no_index=True)),
        ("--pre", Options(prereleases=True)),
        ("--no-binary :all:", Options(no_binary=(":all:",))),
        ("--only-binary Six,a_b , c", Options(only_binary=("six", "a-b", "c"))),
        ("--prefer-binary\n--require-hashes", Options()),
    ],
)
def test_options_say_where_packages_come_from(
    tmp_path: Path, content: str, expected: Options
) -> None:
    assert read(tmp_path, f"six\n{content}").options == expected


def test_the_options_of_every_included_file_count(tmp_path: Path) -> None:
    found = read(tmp_path, "-r a.txt\n-c b.txt\n--no-index", a="--pre\nsix", b=f"-i {HOST}\nsix<2")

    assert found.options == Options(index_url=HOST, no_index=True, prereleases=True)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://host/simple", "is not the URL of an index"),
        ("host/simple", "is not the URL of an index|is not a URL that means one place"),
        ("https://", "is not the URL of an index|is not a URL that means one place"),
        ("file:///wheels", "is not the URL of an index"),
        ("https://host/a/../b", "is not a URL that means one place"),
        ("https://host/a/%2E%2e/b", "is not a URL that means one place"),
        ("https://host/a%2f..%2fb", "is not a URL that means one place"),
        ("https://host/a/..?b", "is not a URL that means one place"),
        ("https://host/a`b", "is not a URL that means one place"),
        ("https://host/$HOME", "is not a URL that means one place"),
        ("https://host/a b", "is not a URL that means one place"),
        ("https://host\\evil/", "is not a URL that means one place"),
    ],
)
@pytest.mark.parametrize("option", ["-i", "--extra-index-url"])
def test_an_index_is_a_page_that_means_one_place(
    tmp_path: Path, option: str, url: str, why: str
) -> None:
    assert re.search(why, refusal(tmp_path, f"{option} {url}").message)


def test_credentials_in_a_file_are_cut_with_a_note(tmp_path: Path) -> None:
    found = read(tmp_path, "-i https://user:s3cret@host/simple")

    assert [note.code for note in found.notes] == ["CREDENTIALS_CUT", "INDEX_FROM_MODEL"]
    assert "s3cret" not in repr(found)


@pytest.mark.parametrize("path", ["wheels", "./wheels/", "sub/../wheels"])
def test_a_directory_of_the_model_is_known_by_the_packages_in_it(tmp_path: Path, path: str) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "wheels" / WHEEL).write_bytes(b"one")
    one = read(tmp_path, f"-f {path}").options.find_links
    (tmp_path / "wheels" / "notes.txt").write_text("no package")
    same = read(tmp_path, "-f wheels").options.find_links
    (tmp_path / "wheels" / WHEEL).write_bytes(b"other")
    other = read(tmp_path, "-f wheels").options.find_links

    assert one == same != other
    assert one[0].startswith("./wheels#sha256=")


@pytest.fixture
def stranger() -> Iterator[Path]:
    """A folder of a user who is not root, whom this process is: root may read everything."""
    with tempfile.TemporaryDirectory() as folder:
        is_root = os.geteuid() == 0
        if is_root:
            # Where pytest makes folders nobody else can come.
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if is_root:
                os.seteuid(0)


def test_a_directory_of_packages_that_cannot_be_read_is_the_models_fault(stranger: Path) -> None:
    (stranger / "pkgs").mkdir()
    (stranger / "pkgs").chmod(0)

    assert "`pkgs` cannot be read: Permission denied" in refusal(stranger, "-f ./pkgs").message


@contextlib.contextmanager
def without_descriptors() -> Iterator[None]:
    """Let this process open no file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("reading", "name"), [(local.package, WHEEL), (local.directory_of_packages, ".")]
)
def test_no_model_is_to_blame_where_no_file_can_be_opened(
    tmp_path: Path, reading: Callable[..., object], name: str
) -> None:
    (tmp_path / WHEEL).touch()

    with pytest.raises(OSError, match="Too many open files"), without_descriptors():
        reading(Place(tmp_path, "requirements.txt", 1), name, local.Budget())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"https://host/{WHEEL}", Requirement("six", "six", (), f"https://host/{WHEEL}")),
        (f"Six @ https://u:s3cret@HOST/{WHEEL}",
         Requirement("six", "six", (), f"https://host/{WHEEL}")),
        (f"six[a] @ https://host/{WHEEL}#sha256=AA ; os_name == 'a'",
         Requirement("six", 'six[a]; os_name == "a"', ("sha256:aa",), f"https://host/{WHEEL}")),
        (f"https://host/{WHEEL} --hash=sha256:bb --hash=sha256:aa",
         Requirement("six", "six", ("sha256:aa", "sha256:bb"), f"https://host/{WHEEL}")),
        ("https://host/six-1.0.tar.gz",
         Requirement("six", "six", (), "https://host/six-1.0.tar.gz")),
        ("https://host/main.zip", Requirement("", "unnamed", (), "https://host/main.zip")),
        ("git+https://host/six@v1",  Requirement("", "unnamed", (), "git+https://host/six@v1")),
        ("git+https://host/six#egg=Six&subdirectory=a/b",
         Requirement("six", "six", (), "git+https://host/six#subdirectory=a/b")),
        ("git+https://host/six#egg=six[b,a]&subdirectory=a",
         Requirement("six", "six[a,b]", (), "git+https://host/six#subdirectory=a")),
        ("git+https://host/six#subdirectory=a&egg=six[a]",
         Requirement("six", "six[a]", (), "git+https://host/six#subdirectory=a")),
        ("git+ssh://git:s3cret@host/six#egg=six",
         Requirement("six", "six", (), "git+ssh://git@host/six")),
        (f"./{WHEEL}", Requirement("six", "six", (f"sha256:{DIGEST}",), f"./{WHEEL}")),
        (f"Six[a] @ sub/../{WHEEL} ; os_name == 'a'",
         Requirement("six", 'six[a]; os_name == "a"', (f"sha256:{DIGEST}",), f"./{WHEEL}")),
        (f"{WHEEL}[a] --hash=sha256:00 --hash=sha256:{DIGEST.upper()}",
         Requirement("six", "six[a]", (f"sha256:{DIGEST}",), f"./{WHEEL}")),
        (f"{WHEEL}#sha256={DIGEST.upper()}",
         Requirement("six", "six", (f"sha256:{DIGEST}",), f"./{WHEEL}")),
        (f"file://{{model}}/{WHEEL}#egg=six",
         Requirement("six", "six", (f"sha256:{DIGEST}",), f"./{WHEEL}")),
    ],
)  # fmt: skip
def test_a_requirement_may_come_from_a_place(
    tmp_path: Path, line: str, expected: Requirement
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / WHEEL).write_bytes(b"wheel")

    found = read(tmp_path, line.replace("{model}", str(tmp_path)))

    assert found.requirements == (expected,)
    assert "s3cret" not in repr(found)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (f"other @ https://host/{WHEEL}", "`other` is asked for from a file of `six`"),
        (f"other @ ./{WHEEL}", "`other` is asked for from a file of `six`"),
        ("https://host/six.whl", "is not the name of a wheel"),
        ("./six-1.x.y-py3-none-any.whl", "is not the name of a wheel"),
        ("./s__x-1.0-py3-none-any.whl", "is not the name of a wheel"),
        ("./six-1.0-py3-none-any.WHL", "is not the name of a wheel"),
        ("https://host/six", "is neither a wheel nor a source archive"),
        ("https://host/six.tar.gz#md5=aa", "`#md5=` is not known"),
        ("hg+https://host/six", r"`hg\+https:` is not a scheme"),
        ("git+http:six", r"`git\+http:` is not a scheme"),
        ("git+https://host/six#subdirectory=../a", "is not a path below the source"),
        ("git+https://host/six#subdirectory=/a", "is not a path below the source"),
        ("git+https://host/six#egg=six%5Ba%5D", "the extras in `#egg=` are encoded"),
        ("git+https://host/a/../six", "is not a URL that means one place"),
        ("https://host/a b.whl", "is neither a URL nor a path"),
        (f"./{WHEEL} --hash=sha256:{'0' * 64}", "has another hash than the line says"),
        (f"./{WHEEL}#sha256={'0' * 64}", "has another hash than its fragment says"),
        ("./pkg#subdirectory=sub", "name `./pkg/sub` itself"),
        ("file://{model}/pkg#subdirectory=sub", "name `./pkg/sub` itself"),
        ("./pkg#branch=sub", "`#branch=` is not known"),
        ("/six.whl", "is outside the model"),
        ("../six.whl", "leads out of the model"),
        ("./missing-1.0-py3-none-any.whl", "is not in the model"),
        ("file://{model}/../six.whl", "leads out of the model|is not in the model"),
        ("./link-1.0-py3-none-any.whl", "leads out of the model"),
    ],
)
def test_a_place_that_cannot_be_used_is_refused(tmp_path: Path, line: str, why: str) -> None:
    model = tmp_path / "model"
    (model / "pkg" / "sub").mkdir(parents=True)
    (model / WHEEL).write_bytes(b"wheel")
    (tmp_path / "six.whl").touch()
    for name in ("six-1.x.y-py3-none-any.whl", "s__x-1.0-py3-none-any.whl", WHEEL[:-3] + "WHL"):
        (model / name).touch()
    (model / "link-1.0-py3-none-any.whl").symlink_to(tmp_path / "six.whl")

    assert re.search(why, refusal(model, line.replace("{model}", str(model))).message)


@pytest.mark.parametrize("profile", ["dev", "standard"])
@pytest.mark.parametrize("url", ["file:///elsewhere/six-1.0.tar.gz", "git+file:///elsewhere"])
def test_a_file_outside_the_model_is_refused_in_every_profile(
    tmp_path: Path, profile: str, url: str
) -> None:
    error = denial(tmp_path, url, Policy(profile, Security(), {}))
    listed = Policy("standard", Security(sources=("file:///elsewhere", "git+file:///")), {})

    assert error.metadata["setting"] == "security.sources"
    assert read(tmp_path, url, listed).requirements[0].source == url
