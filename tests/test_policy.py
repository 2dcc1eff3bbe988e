"""What a profile lets a model ask for, and what it answers where it does not."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from envd import config
from envd.errors import ModelInvalidError, PolicyDeniedError
from envd.events import Note
from envd.settings.sections import Index, Security
from envd.spec import Dependencies, Requirement, channels, of, policy, requirement_file
from envd.spec.place import Place
from envd.spec.policy import Policy
from envd.spec.requirement_file import Requirements
from tests.keys import PYTHON, Asked

PLACE = Place(Path("model"), "requirements.txt", 7)
WHEEL = "own-1.0-py3-none-any.whl"
URLS = {
    "index": ("indexes", "https://a.org/simple", "INDEX_FROM_MODEL"),
    "source": ("sources", "git+https://a.org/own", "SOURCE_FROM_MODEL"),
    "channel": ("channels", "https://a.org/own", "CHANNEL_FROM_MODEL"),
}
LISTED = ["standard", "strict"]


def rules(profile: str, **security: tuple[str, ...] | bool) -> Policy:
    return Policy(profile, Security(**security), {})  # type: ignore[arg-type]


def read(folder: Path, line: str, policy: Policy) -> Requirements:
    """Read *line* as the second line of a model that has a wheel and a source tree."""
    (folder / "pkg").mkdir(exist_ok=True)
    (folder / "pkg" / "pyproject.toml").touch()
    (folder / WHEEL).touch()
    (folder / "requirements.txt").write_text(f"six\n{line}\n")
    return requirement_file.read(folder, "requirements.txt", policy)


def judge(policy: Policy, kind: str, url: str) -> Note:
    named = channels.parse(url) if kind == "channel" else url
    return getattr(policy, kind)(PLACE, named)  # type: ignore[no-any-return]


def key(found: Requirements) -> str:
    return of(Dependencies(None, (), found, ()), PYTHON, Index()).key


def codes(found: Requirements) -> list[str]:
    return [note.code for note in found.notes]


@pytest.mark.parametrize("kind", URLS)
def test_dev_allows_any_url_and_notes_it(kind: str) -> None:
    _, url, code = URLS[kind]

    note = judge(rules("dev"), kind, url)

    assert (note.code, note.subject) == (code, url)
    assert url in note.message


@pytest.mark.parametrize("profile", LISTED)
@pytest.mark.parametrize("kind", URLS)
def test_a_url_is_refused_unless_it_is_listed(kind: str, profile: str) -> None:
    setting, url, code = URLS[kind]
    others = {name: (url,) for name in ("indexes", "sources", "channels") if name != setting}

    for wrong in (rules(profile), rules(profile, **others, local=True)):
        with pytest.raises(PolicyDeniedError) as caught:
            judge(wrong, kind, url)
        assert caught.value.message == (
            f"`model/requirements.txt`, line 7: the {kind} `{url}` is not allowed here; "
            f"`security.{setting}` (ENVD_SECURITY__{setting.upper()}) would allow it"
        )
        assert caught.value.metadata == {
            "model": "model",
            "path": "requirements.txt",
            "line": "7",
            "setting": f"security.{setting}",
        }
    assert judge(rules(profile, **{setting: (url,)}), kind, url).code == code


@pytest.mark.parametrize(
    ("prefix", "url", "is_covered"),
    [
        ("https://a.org", "https://a.org", True),
        ("https://a.org/", "https://a.org", True),
        ("https://a.org", "https://a.org/simple", True),
        ("https://A.ORG/simple", "https://a.org/simple", True),
        ("https://a.org", "HTTPS://A.org/simple", True),
        ("https://me:pw@a.org", "https://a.org/simple", True),
        ("https://a.org/own", "https://a.org/own@v1", True),
        ("https://a.org/own", "https://a.org/own#subdirectory=a", True),
        ("git+https://a.org", "git+https://a.org/own@v1", True),
        ("git+ssh://git@a.org/", "git+ssh://git@a.org/own", False),
        ("git+ssh://a.org", "git+ssh://git@a.org/own", False),
        ("https://", "https://a.org", True),
        ("https://a.org", "https://a.org.evil/simple", False),
        ("https://a.org", "https://a.org@evil/simple", False),
        ("https://a.org/", "https://a.org@evil/simple", False),
        ("git+ssh://a.org", "git+ssh://a.org@evil/own", False),
        ("https://a.org", "https://a.orgevil/simple", False),
        ("https://a.org", "https://a.org:8080/simple", False),
        ("https://a.org", "https://a.org#evil", False),
        ("https://a.org", "http://a.org/simple", False),
        ("https://a.org", "git+https://a.org/own", False),
        ("https://a.org", "https://evil/https://a.org/", False),
        ("https://a.org/own", "https://a.org/owner", False),
        ("https://a.org/own", "https://a.org/OWN", False),
        ("https://a.org/own", "https://a.org", False),
        ("", "https://a.org", False),
    ],
)
@pytest.mark.parametrize("kind", ["index", "source"])
def test_a_prefix_covers_what_lies_below_it(
    kind: str, prefix: str, url: str, *, is_covered: bool
) -> None:
    policy = rules("standard", **{URLS[kind][0]: ("https://other", prefix)})

    if is_covered:
        assert judge(policy, kind, url).subject == url
    else:
        with pytest.raises(PolicyDeniedError):
            judge(policy, kind, url)


@pytest.mark.parametrize("listed", ["https://a.org/own", "HTTPS://me:pw@A.org.:443/t/tk-1/own/"])
@pytest.mark.parametrize(
    ("channel", "is_covered"),
    [
        ("https://a.org/own", True),
        ("https://a.org/own/label/dev", True),
        ("https://A.ORG./own/linux-64/", True),
        ("https://a.org:443/own", True),
        ("https://a.org:00443/own", True),
        ("https://a.org.:443//%6Fwn", True),
        ("https://me:pw@a.org/own", True),
        # With what is cut it is the same channel, and without that it is fetched.
        ("https://a.org/t/evil/own", True),
        ("https://a.org/t/own/evil", False),
        ("https://a.org/own@evil", False),
        ("https://a.org/owner", False),
        ("https://a.org/OWN", False),
        ("https://a.org/evil/own", False),
        ("https://a.org", False),
        ("https://a.org@evil/own", False),
        ("https://a.org:443@evil/own", False),
        ("https://a.org.evil/own", False),
        ("https://a.org:8443/own", False),
        ("http://a.org/own", False),
        ("http://a.org:443/own", False),
        ("a.org/own", False),
        ("own", False),
    ],
)
def test_a_channel_is_judged_by_what_is_fetched(
    listed: str, channel: str, *, is_covered: bool
) -> None:
    policy = rules("standard", channels=("https://other", listed))

    if is_covered:
        assert judge(policy, "channel", channel).subject.startswith("https://a.org/own")
    else:
        with pytest.raises(PolicyDeniedError):
            judge(policy, "channel", channel)


@pytest.mark.parametrize(
    "line",
    [
        "-i https://a.org@evil/simple",
        "-i https://a.org%2f@evil/simple",
        "-i https://evil/simple#https://a.org/",
        "-i https://a.org.evil/simple",
        "own @ git+ssh://a.org@evil/own",
        "own @ git+https://a.org@evil/own",
        "own @ https://a.org@evil/own-1.0.tar.gz",
    ],
)
def test_no_way_of_writing_a_url_gets_past_a_prefix(tmp_path: Path, line: str) -> None:
    prefixes = tuple(f"{scheme}://a.org" for scheme in ("https", "git+https", "git+ssh"))

    with pytest.raises(PolicyDeniedError, match=r"requirements\.txt`, line 2: the .*evil"):
        read(tmp_path, line, rules("standard", indexes=prefixes, sources=prefixes))


@pytest.mark.parametrize("target", ["../evil", "%2e%2E/evil", "..%2fevil", "..?evil", "./..;/a"])
def test_no_url_climbs_out_of_a_prefix(tmp_path: Path, target: str) -> None:
    allowed = rules("standard", indexes=("https://a.org/own",))

    with pytest.raises(ModelInvalidError, match="is not a URL that means one place"):
        read(tmp_path, f"-i https://a.org/own/{target}", allowed)


LINES = [
    ("-i https://a.org/simple", "indexes", "INDEX_FROM_MODEL"),
    ("--extra-index-url https://a.org/simple", "indexes", "INDEX_FROM_MODEL"),
    ("-f https://a.org/page.html", "indexes", "INDEX_FROM_MODEL"),
    ("https://a.org/own-1.0.tar.gz", "sources", "SOURCE_FROM_MODEL"),
    ("own @ https://a.org/own-1.0.tar.gz", "sources", "SOURCE_FROM_MODEL"),
    ("git+https://a.org/own#egg=own", "sources", "SOURCE_FROM_MODEL"),
    (f"./{WHEEL}", "local", "PACKAGE_FROM_MODEL"),
    ("./pkg", "local", "PACKAGE_FROM_MODEL"),
    ("own @ ./pkg", "local", "PACKAGE_FROM_MODEL"),
    ("file://{model}/pkg", "local", "PACKAGE_FROM_MODEL"),
    ("-f pkg", "local", "PACKAGE_FROM_MODEL"),
]


@pytest.mark.parametrize(("line", "setting", "code"), LINES)
def test_every_line_that_leads_elsewhere_is_judged(
    tmp_path: Path, line: str, setting: str, code: str
) -> None:
    line = line.replace("{model}", str(tmp_path))
    prefixes = ("https://a.org", "git+https://a.org")
    allowed = rules("standard", **{setting: setting == "local" or prefixes})

    with pytest.raises(PolicyDeniedError) as caught:
        read(tmp_path, line, rules("standard"))
    dev, standard = read(tmp_path, line, rules("dev")), read(tmp_path, line, allowed)

    assert codes(dev) == codes(standard) == [code]
    assert key(dev) == key(standard)
    assert f"`{tmp_path}/requirements.txt`, line 2: " in caught.value.message
    assert caught.value.metadata["setting"] == f"security.{setting}"


@pytest.mark.parametrize("line", ["numpy", "-i https://pypi.org/simple", "--pre", "--no-index"])
@pytest.mark.parametrize("profile", policy.PROFILES)
def test_what_comes_from_the_ordinary_index_needs_no_leave(
    tmp_path: Path, line: str, profile: str
) -> None:
    assert read(tmp_path, line, rules(profile)).notes == ()


def test_editable_is_taken_in_dev_alone(tmp_path: Path) -> None:
    found = read(tmp_path, "-e ./pkg", rules("dev"))

    assert codes(found) == ["PACKAGE_FROM_MODEL", "EDITABLE_BUILT"]
    for profile in LISTED:
        with pytest.raises(PolicyDeniedError, match=r"line 2: `-e` \(editable\)") as caught:
            read(tmp_path, "-e ./pkg", rules(profile, local=True))
        assert "write `./pkg` without it" in caught.value.message
        assert caught.value.metadata["setting"] == "security.profile"


def test_only_strict_refuses_what_is_built() -> None:
    rules("dev").built("own", "own-1.0.tar.gz")
    rules("standard").built("own", "own-1.0.tar.gz")
    with pytest.raises(PolicyDeniedError, match=r"`own` has no wheel .*own-1\.0\.tar\.gz"):
        rules("strict").built("own", "own-1.0.tar.gz")


def test_a_profile_admits_what_was_built_under_one_no_laxer() -> None:
    admitted = {
        (here, there)
        for here, there in itertools.product(policy.PROFILES, [*policy.PROFILES, "", "auto"])
        if rules(here).admits(there)
    }

    assert admitted == {
        ("dev", "dev"), ("dev", "standard"), ("dev", "strict"),
        ("standard", "standard"), ("standard", "strict"), ("strict", "strict"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("chosen", "profile"),
    [("auto", "dev"), ("dev", "dev"), ("standard", "standard"), ("strict", "strict")],
)
def test_the_settings_choose_the_profile(tmp_path: Path, chosen: str, profile: str) -> None:
    settings = config.load(root=tmp_path, environ={"ENVD_SECURITY__PROFILE": chosen})

    assert policy.of(settings.security, {}) == Policy(profile, settings.security, {})


def test_the_lists_alone_count_where_a_file_lies_outside_the_model() -> None:
    assert rules("dev", local=True).listed_only() == rules("standard", local=True)


INDEX = "-i https://{}@a.org/simple"


def variables(value: str, *listed: str, profile: str = "dev") -> Policy:
    return Policy(profile, Security(variables=listed), {"SECRET": value, "OTHER": "other"})


@pytest.mark.parametrize("profile", policy.PROFILES)
@pytest.mark.parametrize("line", ["six==${SECRET}", "-r ${SECRET}", INDEX.format("${SECRET}")])
def test_a_variable_has_to_be_listed_in_every_profile(
    tmp_path: Path, line: str, profile: str
) -> None:
    with pytest.raises(PolicyDeniedError, match=r"line 2: the variable `\$\{SECRET\}`") as caught:
        read(tmp_path, line, variables("1.17.0", "OTHER", "secret", profile=profile))

    assert caught.value.metadata["setting"] == "security.variables"
    assert "1.17.0" not in str(caught.value.document())


def test_the_value_of_a_listed_variable_is_put_in(tmp_path: Path) -> None:
    found = read(tmp_path, "numpy==${SECRET}", variables("1.26.4", "SECRET"))

    assert found.requirements[1] == Requirement("numpy", "numpy==1.26.4")
    assert codes(found) == ["VARIABLE_EXPANDED"]
    assert found.notes[0].subject == "SECRET"
    assert "1.26.4" not in found.notes[0].message


def test_a_listed_variable_that_is_not_set_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelInvalidError, match=r"`\$\{GONE\}` is allowed, and is not set"):
        read(tmp_path, "numpy==${GONE}", variables("", "GONE"))


def test_the_value_of_a_variable_is_not_expanded_again(tmp_path: Path) -> None:
    both = variables("${OTHER}", "SECRET", "OTHER")

    with pytest.raises(ModelInvalidError, match="is not a requirement"):
        read(tmp_path, "numpy==${SECRET}+${OTHER}", both)


@pytest.mark.parametrize("value", ["a b", "a\n-i https://evil", "\t", "é", "\0"])
def test_a_value_that_could_be_a_line_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ModelInvalidError, match="holds white space or what no URL can hold"):
        read(tmp_path, "-i https://a.org/${SECRET}", variables(value, "SECRET"))


@pytest.mark.parametrize(
    "value", ["s3cret", "s3c/ret", "s3c#ret", "s3c?ret", "s3c@ret", "s3c:ret", "s3c%2Fret", "s3c ="]
)
@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (INDEX.format("${SECRET}"), "https://a.org/simple"),
        (INDEX.format("me:${SECRET}"), "https://a.org/simple"),
        (INDEX.format("${SECRET}:${SECRET}"), "https://a.org/simple"),
        ("-f https://me:${SECRET}@a.org/page", "https://a.org/page"),
        ("own @ https://${SECRET}@a.org/own-1.0.tar.gz", "https://a.org/own-1.0.tar.gz"),
        ("own @ git+https://me:${SECRET}@a.org/own", "git+https://a.org/own"),
        ("own @ git+ssh://me:${SECRET}@a.org/own", "git+ssh://me@a.org/own"),
    ],
)
def test_a_secret_in_a_url_is_nowhere_in_what_is_read(
    tmp_path: Path, line: str, kept: str, value: str
) -> None:
    listed = variables(value.rstrip(" ="), "SECRET")

    found = read(tmp_path, line, listed)

    document = of(Dependencies(None, (), found, ()), PYTHON, Index()).canonical()
    assert kept in document
    assert "s3c" not in repr(found) + document
    assert codes(found)[:2] == ["VARIABLE_EXPANDED", "CREDENTIALS_CUT"]
    assert key(found) == key(read(tmp_path, line, variables("another", "SECRET")))


def test_another_value_is_another_key_where_it_is_no_secret(tmp_path: Path) -> None:
    line = "-i https://a.org/${SECRET}/simple"

    one, other = (read(tmp_path, line, variables(value, "SECRET")) for value in ("a", "b"))

    assert one.options.index_url == "https://a.org/a/simple"
    assert key(one) != key(other)


def test_policy_is_no_part_of_a_key(tmp_path: Path) -> None:
    model = Asked(f"six\n-i https://a.org/simple\n./{WHEEL}\n", {WHEEL: ""})
    allowed = {"SECURITY__INDEXES": "https://a.org", "SECURITY__LOCAL": "true"}
    standard = Asked(
        model.requirements, model.files, settings={"SECURITY__PROFILE": "standard", **allowed}
    )

    assert standard.spec(tmp_path / "a").key == model.spec(tmp_path / "b").key
