"""Which PyPI distribution a conda package is, and in which version.

Only names that differ, and packages PyPI does not have. From conda-forge's feedstocks
and the packages seen in public models.
"""

from __future__ import annotations

from packaging.version import Version

from envd.spec.python import release

PYPI_NAMES = {
    "black-jupyter": "black",
    "brotli-python": "brotli",
    "dask-core": "dask",
    "importlib_metadata": "importlib-metadata",
    "graphviz-python": "graphviz",
    "keras-base": "keras",
    "matplotlib-base": "matplotlib",
    "msgpack-python": "msgpack",
    "numpy-base": "numpy",
    "opencv": "opencv-python-headless",
    "py-lief": "lief",
    "py-opencv": "opencv-python-headless",
    "py-xgboost": "xgboost",
    "py-xgboost-cpu": "xgboost",
    "py-xgboost-gpu": "xgboost",
    "pyarrow-core": "pyarrow",
    "pytables": "tables",
    "python-fastjsonschema": "fastjsonschema",
    "python-flatbuffers": "flatbuffers",
    "python-graphviz": "graphviz",
    "python-kaleido": "kaleido",
    "python-xxhash": "xxhash",
    "pytorch": "torch",
    "pytorch-cpu": "torch",
    "pytorch-gpu": "torch",
    "ruamel_yaml": "ruamel-yaml",
    "seaborn-base": "seaborn",
    "spacy-model-en_core_web_sm": "en-core-web-sm",
    "tensorflow-base": "tensorflow",
    "tensorflow-eigen": "tensorflow",
    "tensorflow-gpu": "tensorflow",
    "tensorflow-mkl": "tensorflow",
    "typing_extensions": "typing-extensions",
    "uvicorn-standard": "uvicorn",
    "xgboost-cpu": "xgboost",
}

_SYSTEM_NAMES = {
    "alsa-lib", "atk", "blas", "boost", "brotli-bin", "bzip2", "c-ares", "ca-certificates",
    "cairo", "cpuonly", "cuda", "cudatoolkit", "cudnn", "cupti", "cyrus-sasl", "dal", "dbus",
    "double-conversion", "expat", "ffmpeg", "fftw", "fontconfig", "freetype", "fribidi", "gcc",
    "gdk-pixbuf", "geos", "gettext", "gflags", "gfortran", "giflib", "git", "glib", "glog", "gmp",
    "gnutls", "graphite2", "gsl", "gst-plugins-base", "gstreamer", "gtk2", "gtk3", "gxx",
    "harfbuzz", "hdf4", "hdf5", "icc_rt", "icu", "impi_rt", "intel-openmp", "isl", "jpeg",
    "keyutils", "krb5", "lame", "lcms2", "ld_impl_linux-64", "lerc", "llvm-openmp", "lz4-c",
    "make", "mkl", "mkl-service", "mpc", "mpfr", "mpg123", "mpich", "mysql", "nccl", "ncurses",
    "nettle", "nodejs", "nspr", "nss", "openblas", "openh264", "openjdk", "openjpeg", "openmp",
    "openmpi", "openssl", "orc", "pandoc", "pango", "patchelf", "pcre", "pcre2", "perl", "pixman",
    "pkg-config", "postgresql", "proj", "pthread-stubs", "python_abi", "pytorch-cuda",
    "pytorch-mutex", "pywin32", "pywinpty", "qt", "qt-main", "qt-webengine", "r-base", "re2",
    "readline", "s2n", "snappy", "spdlog", "sqlite", "suitesparse", "tbb", "tk", "tzdata", "ucrt",
    "unixodbc", "uriparser", "utf8proc", "vc", "vc14_runtime", "vs2015_runtime", "win_inet_pton",
    "wincertstore", "winpty", "x264", "x265", "xz", "yaml", "zeromq", "zlib", "zlib-ng", "zstd",
}  # fmt: skip
# `m2w64-` and `msys2-` stand in environments that were exported on Windows.
_SYSTEM_PREFIXES = (
    "_", "lib", "aws-c-", "aws-sdk-", "cuda-", "font-", "fonts-", "gcc_", "gxx_", "m2w64-",
    "msys2-", "r-", "xorg-",
)  # fmt: skip
_SYSTEM_SUFFIXES = ("-cpp", "_linux-64", "_linux-aarch64", "_win-64")
_PYTHON_LIBRARIES = {
    "cuda-python",
    "libclang",
    "libcst",
    "libpysal",
    "librosa",
    "libsass",
    "libtmux",
}


def pypi_version(version: str) -> Version:
    """Return the *version* of a conda package, or the numbers that one of conda's kind begins with.

    PyPI has no `1.1.1w`, nor an empty one.
    """
    try:
        return Version(version)
    except ValueError:  # InvalidVersion, or more digits than Python counts
        return Version(".".join(map(str, release(version))) or "0")


def pypi_name(conda_name: str) -> str | None:
    """Return the PyPI distribution of *conda_name*, or None where it is a system library."""
    name = conda_name.lower()
    if name in PYPI_NAMES:
        return PYPI_NAMES[name]
    if name in _PYTHON_LIBRARIES:
        return name
    if (
        name in _SYSTEM_NAMES
        or name.startswith(_SYSTEM_PREFIXES)
        or name.endswith(_SYSTEM_SUFFIXES)
    ):
        return None
    return name
