# make demo: the main job on the embedded sample; make test: all tests. Both set up .venv first, once.
PYTHON ?= python3
BIN := .venv/bin
PARALLEL := --numprocesses auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test check docs lock clean

demo: .setup
	$(BIN)/vl2v demo --out runs/demo

# OpenVINO can crash a process into which other tests have loaded their libraries: exports are tested apart.
test: .setup
	$(BIN)/python -m pytest $(PARALLEL) tests/export
	$(BIN)/python -m pytest $(PARALLEL) --ignore tests/export

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
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch .setup

# The newest of everything that pyproject.toml allows, for all platforms, each file by its hash.
lock: .setup
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --no-header --upgrade --quiet \
		--output-file requirements.lock

clean:
	rm -rf .venv .setup site
