# `make demo` and `make test` need Python >= 3.11, pip and make; each makes .venv and installs what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-faults lint audit docs benchmark clean

demo: $(VENV)/installed
	$(BIN)/wsi demo --out wsi-demo

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -n auto --dist loadgroup

# Every fault of tests/faults, of which `make test` takes a sample.
test-faults: $(VENV)/installed-test
	WSI_FAULTS=all $(BIN)/python -m pytest tests/faults -n auto -rA

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Known faults of everything that is installed, by PyPI's advisories: needs a network, and says so where it found out nothing.
audit: $(VENV)/installed-dev
	$(BIN)/python tests/project/audit.py $(BIN)/pip-audit

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

benchmark: $(VENV)/installed-test
	$(BIN)/python benchmarks/outputs.py
	$(BIN)/python benchmarks/tiling.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/inference.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cpu]'
	touch $@

$(VENV)/installed-test: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

$(VENV)/installed-docs: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) wsi-demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
