# Everything below runs in .venv, which `make .venv` fills from uv.lock.
PYTHON ?= python3
UV = .venv/bin/uv
RUN = .venv/bin
# A file is one process's: its daemons and roots are started once. The longest come first.
PARALLEL = -n 2 --dist loadfile --no-loadscope-reorder

# uv and pip find the machine's own certificates, and no configuration but the project's.
export UV_SYSTEM_CERTS = 1
export UV_NO_PROGRESS = 1
# Tests are rewritten and libraries compiled once, and not in each of the processes of each run.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-all test-image soak check fix proto bench bench-setup clean

.venv/ready: pyproject.toml clients/python/pyproject.toml uv.lock
	@test -x $(RUN)/python || $(PYTHON) -m venv .venv
	@test -x $(UV) || $(RUN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.13.9'
	$(UV) sync --quiet --locked
	@touch $@

# Builds the environment of examples/iris and asks it four times.
demo: .venv/ready
	@PATH="$(CURDIR)/$(RUN):$$PATH" examples/demo

test: .venv/ready
	$(RUN)/pytest -q $(PARALLEL)

test-all: .venv/ready
	$(RUN)/pytest -q --slow $(PARALLEL)

# An image on a base of Debian's packages; buildah and mmdebstrap have to be there.
test-image: .venv/ready
	$(RUN)/pytest -q --slow tests/test_image_built.py

# As long as one likes: `make soak MINUTES=600`.
soak: MINUTES ?= 60
soak: .venv/ready
	MINUTES=$(MINUTES) $(RUN)/pytest -q -rP --slow $(PARALLEL) tests/test_machine.py tests/test_soak.py

check: .venv/ready
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/mypy
	$(RUN)/lint-imports --no-logo
	$(RUN)/buf lint proto

fix: .venv/ready
	$(RUN)/ruff check --fix
	$(RUN)/ruff format
	$(RUN)/buf format -w proto

# The stubs belong to the client: two copies of one proto in a process are a TypeError. For that
# reason those of the Open Inference Protocol, which its own clients have, are the daemon's alone.
proto: .venv/ready
	$(PROTOC) -Ienvd_client/v1=proto/envd/v1 $(call TO,$(CLIENT)) envd_client/v1/envd.proto
	$(PROTOC) -Ienvd/serve/oip=proto/inference $(call TO,$(DAEMON)) envd/serve/oip/inference.proto

CLIENT ?= clients/python
DAEMON ?= .
PROTOC = $(RUN)/python -m grpc_tools.protoc --plugin=protoc-gen-mypy=$(RUN)/protoc-gen-mypy \
  --plugin=protoc-gen-mypy_grpc=$(RUN)/protoc-gen-mypy_grpc
TO = --python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1)

bench-setup: .venv/ready
	$(RUN)/python bench/setup.py

bench: bench-setup
	$(RUN)/python bench/build.py
	$(RUN)/python bench/keys.py
	$(RUN)/python bench/store.py
	$(RUN)/python bench/conda.py
	$(RUN)/python bench/serving.py
	$(RUN)/python bench/models.py
	$(RUN)/python bench/once.py
	$(RUN)/python bench/sandbox.py

clean:
	rm -rf .venv .demo .bench .mypy_cache .ruff_cache .pytest_cache build dist
