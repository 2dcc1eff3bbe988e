"""Which distribution a module is known to come from.

A distribution is never guessed from a module's name: whoever owns that name on the index
would be trusted. MLflow's own hint is that guess (`extra_pip_requirements=["bs4==..."]`).
"""

from __future__ import annotations

DISTRIBUTIONS = {
    "Crypto": "pycryptodome",
    "IPython": "ipython",
    "MySQLdb": "mysqlclient",
    "OpenSSL": "pyOpenSSL",
    "PIL": "Pillow",
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "catboost": "catboost",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "faiss": "faiss-cpu",
    "fitz": "PyMuPDF",
    "git": "GitPython",
    "google.protobuf": "protobuf",
    "imblearn": "imbalanced-learn",
    "jose": "python-jose",
    "jwt": "PyJWT",
    "kafka": "kafka-python",
    "lightgbm": "lightgbm",
    "magic": "python-magic",
    "mlxtend": "mlxtend",
    "mpl_toolkits": "matplotlib",
    "numpy": "numpy",
    "pandas": "pandas",
    "pkg_resources": "setuptools",
    "psycopg2": "psycopg2-binary",
    "pyarrow": "pyarrow",
    "scipy": "scipy",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "sklego": "scikit-lego",
    "skops": "skops",
    "slugify": "python-slugify",
    "socks": "PySocks",
    "statsmodels": "statsmodels",
    "tensorflow": "tensorflow",
    "tlz": "toolz",
    "torch": "torch",
    "umap": "umap-learn",
    "xgboost": "xgboost",
    "yaml": "PyYAML",
    "zmq": "pyzmq",
}


def distribution_of(module: str) -> str | None:
    """Return the distribution that *module* is known to come from, or None."""
    return DISTRIBUTIONS.get(module) or DISTRIBUTIONS.get(module.split(".", maxsplit=1)[0])
