"""`python -I -B .../envd_worker MODE ...`: the programs of this package.

    serve FD [JSON [FD...]]     a worker on the protocol socket FD
    template FD FILE [LEASE]    a template on the control socket FD
    confined JSON [FD...]       another program, confined
    broker FD                   makes detached mounts for whoever asks at the socket FD
    probe [FD [USER]]           what this kernel lets a worker be confined by, as JSON
    infer FILE                  what a model takes where it was made, as JSON

The object in JSON, or in FILE, for there it may be long, says the rest; what it names by
index is among the descriptors, the first FD included.
"""

import importlib
import importlib.util
import os
import sys


def load_package():
    """Import this folder as `envd_worker`, and leave no way to it, or past it, in sys.path."""
    here = os.path.dirname(os.path.abspath(__file__))
    # A folder that is run is put at the front, whatever the flags.
    sys.path[:] = [one for one in sys.path if os.path.abspath(one) != here]
    spec = importlib.util.spec_from_file_location(
        "envd_worker", os.path.join(here, "__init__.py"), submodule_search_locations=[here]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["envd_worker"] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    load_package()
    program = {"serve": "worker"}.get(sys.argv[1], sys.argv[1])
    importlib.import_module("envd_worker." + program).main(*sys.argv[2:])
