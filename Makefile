# make demo: the main job on the embedded sample; make test: all tests. Both set up .venv first, once: for the
# demonstration with the packages that people need, for the tests with those that developers do.
PYTHON ?= python3
BIN := .venv/bin
HALF := $(shell $(PYTHON) -c "import os; print((os.cpu_count() + 1) // 2)")
PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder --max-worker-restart 0
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test exports others check docs lock clean

demo: $(if $(wildcard .setup),.setup,.setup-demo)
	$(BIN)/vl2v demo --out runs/demo

# OpenVINO can crash a process into which other tests have loaded their libraries: exports are tested in others, beside.
test: .setup
	@$(MAKE) --no-print-directory --jobs 2 exports others

exports: .setup
	$(PYTEST) --numprocesses $(HALF) tests/export

others: .setup
	$(PYTEST) --numprocesses auto --ignore tests/export

check: .setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .setup
	$(BIN)/mkdocs build --strict

# Nothing is compiled beforehand: most of the 28,000 files of the packages are never imported.
.setup: pyproject.toml requirements.lock
	@echo "1/3 making a virtual environment in .venv"
	@$(PYTHON) -m venv .venv
	@echo "2/3 installing the packages of requirements.lock (a few minutes)"
	@$(PIP) --no-deps --no-compile --require-hashes --requirement requirements.lock
	@echo "3/3 installing vl2v"
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch .setup

# What the README's commands need: less than half of the packages, in the same versions; without Triton, a gigabyte that
# compiles for GPUs (`train.compile`).
.setup-demo: pyproject.toml requirements-demo.lock
	@echo "1/3 making a virtual environment in .venv"
	@$(PYTHON) -m venv .venv
	@echo "2/3 installing the packages of requirements-demo.lock (a few minutes)"
	@$(PIP) --no-deps --no-compile --require-hashes --requirement requirements-demo.lock
	@echo "3/3 installing vl2v"
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch .setup-demo

# The newest of everything that pyproject.toml allows, for all platforms, each file by its hash.
lock: .setup
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --no-header --upgrade --quiet \
		--output-file requirements.lock
	echo hatchling | $(BIN)/uv pip compile pyproject.toml - --extra export --extra serve --universal --generate-hashes --no-header \
		--no-annotate --quiet --constraint requirements.lock --no-emit-package triton --output-file requirements-demo.lock

clean:
	rm -rf .venv .setup .setup-demo site
