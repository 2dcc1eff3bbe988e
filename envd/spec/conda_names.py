"""Which PyPI distribution a conda package is.

Only names that differ, and packages PyPI does not have. From conda-forge's feedstocks
and the packages seen in public models.
"""

from __future__ import annotations

PYPI_NAMES = {
    "black-jupyter": "black",
    "brotli-python": "brotli",
    "dask-core": "dask",
    "importlib_metadata": "importlib-metadata",
    "graphviz-python": "graphviz",
    "jaxlib": "jaxlib",
    "keras-base": "keras",
    "lightgbm": "lightgbm",
    "matplotlib-base": "matplotlib",
    "mlflow-skinny": "mlflow-skinny",
    "msgpack-python": "msgpack",
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
    "pytorch-lightning": "pytorch-lightning",
    "ruamel_yaml": "ruamel-yaml",
    "seaborn-base": "seaborn",
    "spacy-model-en_core_web_sm": "en-core-web-sm",
    "tensorflow-base": "tensorflow",
    "tensorflow-cpu": "tensorflow-cpu",
    "tensorflow-gpu": "tensorflow",
    "torchvision": "torchvision",
    "typing_extensions": "typing-extensions",
    "uvicorn-standard": "uvicorn",
    "xgboost-cpu": "xgboost",
}

_SYSTEM_NAMES = {
    "blas", "bzip2", "ca-certificates", "cuda", "cudatoolkit", "cudnn", "expat", "freetype",
    "gcc", "gfortran", "git", "glib", "gmp", "gxx", "icu", "intel-openmp", "jpeg", "krb5",
    "lcms2", "ld_impl_linux-64", "llvm-openmp", "lz4-c", "lerc", "mkl", "mkl-service", "mpc",
    "mpfr", "nccl", "ncurses", "nodejs", "openblas", "openjdk", "openjpeg", "openmp", "openssl",
    "pandoc", "perl", "python_abi", "pytorch-cuda", "pytorch-mutex", "r-base", "re2", "readline",
    "snappy", "sqlite", "tbb", "tk", "tzdata", "vs2015_runtime", "xz", "yaml", "zeromq", "zlib",
    "zstd",
}  # fmt: skip
_SYSTEM_PREFIXES = ("_", "lib", "cuda-", "gcc_", "gxx_", "xorg-", "font-", "fonts-", "r-")
_PYTHON_LIBRARIES = {"libcst", "libclang", "librosa", "libsass", "libtmux"}


def pypi_name(conda_name: str) -> str | None:
    """Return the PyPI distribution of *conda_name*, or None where it is a system library."""
    name = conda_name.lower()
    if name in PYPI_NAMES:
        return PYPI_NAMES[name]
    if name in _PYTHON_LIBRARIES:
        return name
    if name in _SYSTEM_NAMES or name.startswith(_SYSTEM_PREFIXES):
        return None
    return name
