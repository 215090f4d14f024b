# make demo: the main job on the embedded sample; make test: all tests. Both set up .venv first, once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check docs clean

demo: .setup
	$(BIN)/vl2v demo --out runs/demo

test: .setup
	$(BIN)/python -m pytest --cov

check: .setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .setup
	$(BIN)/mkdocs build --strict

# torch and torchvision go together: other pairs fail to import.
.setup: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch .setup

clean:
	rm -rf .venv .setup site
