"""Match specs: one spelling for each meaning, the one conda and rattler know."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envd.spec import match_spec
from envd.spec.channels import Channel
from envd.spec.match_spec import MatchSpec

MD5, SHA256 = "0" * 31 + "a", "f" * 64
SPELLINGS = {
    "numpy": ["numpy", "NumPy", " numpy ", "numpy *", "numpy=*", "numpy[]", "::numpy", "*::numpy",
              "numpy=*=*", "numpy # why", "numpy#why", "numpy[version='*']", "numpy >1|*"],
    "numpy 1.2.*": ["numpy=1.2", "numpy = 1.2", "numpy=1.2.*", "numpy=1.2*", "numpy==1.2.*",
                    "numpy 1.2.*", "numpy 1.2*", "numpy=01.02", "numpy[version='=1.2']",
                    "numpy[version=1.2.*]", "numpy=1.2,*"],
    "numpy ==1.2": ["numpy==1.2", "numpy == 1.2", "numpy 1.2", "numpy\t1.2", "numpy  1.2",
                    "numpy[version=1.2]", 'numpy[version="1.2"]', "numpy [version='==1.2']",
                    "numpy=1.3[version=1.2]", "numpy=1.2=*", "numpy[ version = '1.2' ]",
                    "numpy 1.2|==1.2"],
    "numpy ==1.2[build='py37_0']": [
        "numpy=1.2=py37_0", "numpy==1.2=py37_0", "numpy 1.2 py37_0", "numpy =1.2 py37_0",
        "numpy 1.2 =py37_0", "numpy  1.2   py37_0", "numpy==1.2[build=py37_0]",
        "numpy[version='1.2',build='py37_0']", "numpy[build=py37_0, version=1.2]",
        "numpy[version='1.2' build='py37_0']", "numpy=1.2=other[build=py37_0]",
    ],
    "numpy 1.2.*[build='py37_0']": ["numpy=1.2.*=py37_0", "numpy=1.2[build=py37_0]"],
    "numpy ==1.2[build='*_cpu']": ["numpy=1.2=*_cpu", "numpy 1.2 *_cpu"],
    "numpy[build='*cuda*']": ["numpy=*=*cuda*", "numpy * *cuda*", "numpy[build=*cuda*]"],
    "numpy ==2.1[build='py3.9_cuda12.1_cudnn8.9.2_0']": ["numpy=2.1=py3.9_cuda12.1_cudnn8.9.2_0"],
    "numpy >=1.2,<2": ["numpy>=1.2,<2", "numpy >= 1.2, < 2", "numpy<2,>=1.2", "numpy >=1.2 , <2",
                       "numpy[version='>=1.2, <2']", "numpy>=1.2,<2,>=1.2", "numpy>=1.2.*,<2.*",
                       "numpy *,>=1.2,<2"],
    "numpy >=1.2,<2[build='py37_0']": ["numpy>=1.2,<2 py37_0", "numpy >=1.2,<2=py37_0"],
    "numpy ==1.2|>=1.4,<2": ["numpy 1.2|>=1.4,<2", "numpy >=1.4,<2|1.2", "numpy <2,>=1.4|==1.2"],
    "numpy 1.2.*,>1": ["numpy=1.2,>1", "numpy >1,1.2.*"],
    "numpy !=1.3.*": ["numpy!=1.3.*", "numpy != 1.3.*"],
    "numpy ~=1.2": ["numpy~=1.2", "numpy ~= 1.2"],
    "numpy 0.22.2.post1.*": ["numpy=0.22.2.post1"],
    "numpy ==1.2rc1": ["numpy==1.2RC1", "numpy 1.2rc1"],
    "numpy 2022a.*": ["numpy=2022a"],
    "numpy ==1!2.0+local": ["numpy==1!2.0+local"],
    "numpy v1.2.*": ["numpy=v1.2"],
    "conda-forge::numpy 1.2.*": [
        "conda-forge::numpy=1.2", "numpy=1.2[channel=conda-forge]", "Conda-Forge::NumPy=1.2",
        "https://conda.anaconda.org/conda-forge::numpy=1.2", "conda-forge/::numpy=1.2",
        "main::numpy=1.2[channel='https://conda.anaconda.org/conda-forge/']",
    ],
    "conda-forge::numpy[subdir='linux-64']": [
        "conda-forge/linux-64::numpy", "conda-forge/linux-64/::numpy",
        "conda-forge::numpy[subdir=linux-64]", "numpy[channel=conda-forge/linux-64]",
        "conda-forge/noarch::numpy[subdir=Linux-64]",
    ],
    "numpy[subdir='noarch']": ["*/noarch::numpy", "numpy[subdir=noarch]"],
    "https://host:80/a/b::numpy": ["https://host:80/a/b::numpy", "https://me:pw@host:80/a/b::numpy",
                                   "https://host:80/t/tk-1/a/b/::numpy"],
    "nvidia/label/cuda-12.1.0::cuda": ["nvidia/label/cuda-12.1.0::cuda"],
    "file:///srv/a::numpy": ["/srv/a::numpy", "file:///srv/a::numpy"],
    "numpy[build_number='1']": ["numpy[build_number=1]", "numpy[build_number='==1']"],
    "numpy[build_number='>=1']": ["numpy[build_number=>=1]"],
    f"numpy[md5='{MD5}']": [f"numpy[md5={MD5.upper()}]"],
    f"numpy[sha256='{SHA256}']": [f"numpy[sha256={SHA256.upper()}]"],
    "_libgcc_mutex ==0.1[build='main']": ["_libgcc_mutex=0.1=main"],
    "2to3": ["2to3"],
}  # fmt: skip
REFUSED = {
    "": "the name of a package", "=1.2": "the name", "*": "the name", "^numpy$": "the name",
    "numpy::": "the name", "-r more.txt": "the name", "--file=x": "the name",
    "numpy-1.2-py37_0.tar.bz2": "the name", "https://host/linux-64/numpy-1-0.conda": "no version",
    "numpy*": "no version", "numpy|scipy": "no version", "numpy(>=1.2)": "no version",
    "numpy (>=1.2)": "a version that is none", "numpy@": "no version", "six: six": "no version",
    "a b c": "a version that is none", "a b c d": "no version", "ns:numpy": "no version",
    "conda-forge:ns:numpy": "no version", "numpy 1.2 a|b": "no version",
    "numpy=": "a version", "numpy==": "a version", "numpy>=": "a version",
    "numpy=1.2=": "a version", "numpy 1.2==py37_0": "a version",
    "numpy===1.2": "a version", "numpy<>1.2": "a version", "numpy>=1.2 <2": "a version",
    "numpy 1.2,": "a version", "numpy ,1.2": "a version", "numpy 1..2": "a version",
    "numpy 1_2-3": "a version", "numpy=^1.*$": "a version", "numpy=1.*.3": "a version",
    "numpy >1.2.*": "more than one way",
    "numpy <=1.2.*": "more than one way", "numpy ~=1.2.*": "more than one way",
    "numpy ~=1": "more than one way", "numpy !=1.2*": "more than one way",
    "numpy >1,==1.2.*": "more than one way", "numpy ==1.2.* py37_0": "more than one way",
    "numpy=1.2=^py.*$": "a `build` that is none", "numpy[build='a|b']": "a `build`",
    "numpy 1.2 py-3": "a `build`",
    "numpy[build_number=a]": "`build_number`", "numpy[subdir=moon-64]": "`subdir`",
    "numpy[md5=abc]": "`md5`", "numpy[sha256=zz]": "`sha256`", "numpy[license=MIT]": "`license`",
    "numpy[url='https://host/x']": "`url`", "numpy[when='python<3']": "`when`",
    "numpy[extras=[a]]": "`extras`", "numpy[version]": "key='value'",
    "numpy[version='']": "key='value'", "numpy[version=1,version=2]": "a key twice",
    "numpy[a][b]": "key='value'",
    "numpy[version=1": "not closed", "numpy[version=1] 2": "not closed",
    "./here::numpy": "its channel", "https://host/$TOKEN::numpy": "its channel",
    "numpy # [linux]": "selectors", "numpy=1.2  # [not win and py<38]": "selectors",
    "numpy;python_version<'3'": "conditions", "numpy if linux": "conditions",
    "numpy\n": "control characters", "numpy\0": "control characters", "a" * 4_001: "very long",
}  # fmt: skip


@pytest.mark.parametrize("text", SPELLINGS)
def test_all_spellings_of_one_meaning_have_one_text(text: str) -> None:
    expected = match_spec.parse(text)

    assert expected.text == text
    assert [match_spec.parse(one) for one in SPELLINGS[text]] == [expected] * len(SPELLINGS[text])


def test_every_part_is_read() -> None:
    text = f"pytorch/linux-64::PyTorch>=2.1,<3=*cuda*[build_number=>1,md5={MD5},sha256={SHA256}]"

    assert match_spec.parse(text) == MatchSpec(
        "pytorch", ">=2.1,<3", "*cuda*", ">1", Channel("pytorch"), "linux-64", MD5, SHA256
    )


@pytest.mark.parametrize(("text", "why"), REFUSED.items())
def test_what_is_refused_says_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        match_spec.parse(text)


def test_a_channel_keeps_its_credentials_to_itself() -> None:
    found = match_spec.parse("https://me:s3cret@host/t/s3cret/a::numpy")

    assert "s3cret" not in repr(found)
    assert "s3cret" not in found.text
    assert found.channel is not None
    assert found.channel.had_secret


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("numpy=1.2=py37_0", "numpy ==1.2"),
        ("numpy=1.2=*mkl*", "numpy ==1.2[build='*mkl*']"),
        (f"a::numpy=1.2[build_number=1,subdir=noarch,md5={MD5}]", "a::numpy 1.2.*"),
        ("numpy", "numpy"),
    ],
)
def test_what_one_channel_built_can_be_left_out(text: str, expected: str) -> None:
    assert match_spec.parse(text).of_any_build().text == expected


VERSIONS = ["0.9", "1", "1.2", "1.2.0", "1.02", "1.2.3", "1.2.3.post1", "1.20", "1.2rc1", "1.3",
            "1.3.1", "2.0", "2.1", "3", "2022a", "1!2.0", "1.2+local"]  # fmt: skip
BUILDS = ["py37_0", "py38_1", "x_cuda11_0", "0"]
RECORDS = [(version, build) for version in VERSIONS for build in BUILDS]
Matches = Callable[[str], list[bool]]


@pytest.fixture(scope="module")
def by_rattler() -> Matches:
    """Say which of RECORDS rattler takes for a text, when it reads it strictly or not."""
    rattler = pytest.importorskip("rattler")
    records = [
        rattler.PackageRecord(
            name="numpy",
            version=version,
            build=rattler.BuildString(build),
            build_number=int(build[-1]),
            subdir="linux-64",
        )
        for version, build in RECORDS
    ]

    def matches(text: str, *, strict: bool = False) -> list[bool]:
        found = rattler.MatchSpec(text, strict)
        return [found.matches(one) for one in records]

    return matches


@pytest.fixture(scope="module")
def by_conda() -> Matches:
    """Say which of RECORDS conda itself takes for a text."""
    pytest.importorskip("conda_lock")
    with warnings.catch_warnings(action="ignore"):
        from conda_lock._vendor.conda.models.match_spec import MatchSpec as CondaMatchSpec
        from conda_lock._vendor.conda.models.records import PackageRecord

    records = [
        PackageRecord(
            name="numpy",
            version=version,
            build=build,
            build_number=int(build[-1]),
            channel="https://conda.anaconda.org/conda-forge/linux-64",
            subdir="linux-64",
            fn="numpy.conda",
        )
        for version, build in RECORDS
    ]
    return lambda text: [bool(CondaMatchSpec(text).match(one)) for one in records]


# What conda reads, rattler does not or otherwise, and the other way round.
ONLY_CONDA = {"numpy 1.2 =py37_0", "numpy[version='1.2' build='py37_0']"}
ONLY_RATTLER = {" numpy ", "numpy\t1.2", "numpy[ version = '1.2' ]"}
TABLE = [
    one
    for text, spellings in SPELLINGS.items()
    for one in (text, *spellings)
    if text.startswith("numpy") and "md5" not in text and "sha256" not in text
]


@pytest.mark.parametrize("text", [one for one in TABLE if one not in ONLY_CONDA])
def test_rattler_takes_the_same_for_a_text_and_for_ours(by_rattler: Matches, text: str) -> None:
    ours = match_spec.parse(text).text

    assert by_rattler(ours) == by_rattler(text)
    assert by_rattler(ours, strict=True) == by_rattler(text)


@pytest.mark.parametrize("text", [one for one in TABLE if one not in ONLY_RATTLER])
def test_conda_takes_the_same_for_a_text_and_for_ours(by_conda: Matches, text: str) -> None:
    assert by_conda(match_spec.parse(text).text) == by_conda(text)


OPERATORS = st.sampled_from(["", "=", "==", ">=", "<", ">", "<=", "!=", "~="])
NUMBERS = st.sampled_from(
    ["1.2", "1", "1.2.0", "1.2.3.post1", "1.3", "2.1", "2022a", "1.2rc1", "1!2.0"]
)
TERMS = st.tuples(OPERATORS, st.sampled_from(["", " "]), NUMBERS, st.sampled_from(["", "", ".*"]))
EXPRESSIONS = st.lists(
    st.tuples(TERMS.map("".join), st.sampled_from([",", ", ", "|", " | "])), min_size=1, max_size=3
).map(lambda pairs: re.sub(" +", " ", "".join(map("".join, pairs)).rstrip(",| ")))
TIGHT = EXPRESSIONS.map(lambda version: version.replace(" ", ""))
BUILD = st.sampled_from(["py37_0", "*cuda*", "py*", "0"])
SPECS = st.one_of(
    EXPRESSIONS.map(lambda version: f"numpy {version}"),
    st.tuples(EXPRESSIONS, BUILD).map(lambda both: f"numpy {both[0]} {both[1]}"),
    st.tuples(OPERATORS, NUMBERS, BUILD).map(lambda all_: "numpy{}{}={}".format(*all_)),
    TIGHT.map(lambda version: f"numpy[version='{version}']"),
    st.tuples(TIGHT, BUILD).map(lambda both: "numpy[version='{}',build={}]".format(*both)),
)
MADE = settings(
    max_examples=300, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@MADE
@given(SPECS)
def test_made_up_specs_mean_to_rattler_what_ours_mean(by_rattler: Matches, text: str) -> None:
    try:
        ours = match_spec.parse(text)
    except ValueError:
        return

    assert match_spec.parse(ours.text) == ours
    assert by_rattler(ours.text, strict=True) == by_rattler(text)


@MADE
@given(SPECS)
def test_made_up_specs_mean_to_conda_what_ours_mean(by_conda: Matches, text: str) -> None:
    try:
        ours = match_spec.parse(text)
        expected = by_conda(text)
    except ValueError:  # conda takes fewer blanks
        return

    assert by_conda(ours.text) == expected


@given(
    st.text(max_size=40)
    | st.lists(
        st.sampled_from([
            "numpy", "1.2", "*", "=", "==", ">", "<", "!", "~", ",", "|", " ", "py37_0", "[", "]",
            "version", "build", "'", '"', "::", ":", "/", "conda-forge", "linux-64", "https://",
            "#", ";", " if ", "\t", "\0", ".", "_", "-", "+", "é", "@", "$",
        ]),
        max_size=12,
    ).map("".join)
)  # fmt: skip
def test_any_text_is_refused_or_has_a_text_of_its_own(text: str) -> None:
    try:
        found = match_spec.parse(text)
    except ValueError:
        return

    assert match_spec.parse(found.text) == found
    assert found.text.isprintable()
