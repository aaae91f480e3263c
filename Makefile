# `make demo` and `make test` need Python >= 3.11, pip and make; each makes .venv and installs what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo model test test-system test-faults coverage lint audit docs benchmark gpu-check clean

demo: $(VENV)/installed
	$(BIN)/wsi demo --out wsi-demo

# A model in the box, anew: make model IDC="FOLDER FOLDER" NAME=idc-cnn, of the public IDC patches.
NAME ?= idc
model: $(VENV)/installed
	$(BIN)/python examples/train_boxed_model.py $(IDC) --name $(NAME)

PYTEST := $(BIN)/python -m pytest -n auto --dist loadgroup

# What runs in one process: while you work.
test: $(VENV)/installed-test
	$(PYTEST) -m "not system and not faults" $(OPTIONS)

# Real processes, clusters, browsers, compilers, and the blocks of code in README and docs.
test-system: $(VENV)/installed-test
	$(PYTEST) -m "system and not faults" $(OPTIONS)

# Every fault, of which the other two take a sample: an hour or two.
test-faults: $(VENV)/installed-test
	$(PYTEST) -m faults -rA $(OPTIONS)

# Branch coverage of the first two tiers, each by itself.
coverage: $(VENV)/installed-dev
	$(PYTEST) -m "not system and not faults" --cov --cov-report=term
	$(PYTEST) -m "system and not faults" --cov --cov-report=term

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

# Known faults of everything that is installed, by PyPI's advisories: needs a network, and says so where it found out nothing.
audit: $(VENV)/installed-dev
	$(BIN)/python tests/project/audit.py $(BIN)/pip-audit

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

benchmark: $(VENV)/installed-test
	$(BIN)/python benchmarks/outputs.py
	$(BIN)/python benchmarks/outputs.py --small
	$(BIN)/python benchmarks/tiling.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/cohort.py
	$(BIN)/python benchmarks/sampling.py

# Is this machine's GPU right, and how fast? Nine minutes at most. Rehearsed by make gpu-check OPTIONS="--device cpu".
gpu-check: $(VENV)/installed-test
	$(BIN)/python benchmarks/gpu_check.py $(OPTIONS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cpu]'
	touch $@

$(VENV)/installed-test: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $(VENV)/installed $(VENV)/installed-docs $@  # this one has all of theirs

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(VENV)/installed $(VENV)/installed-docs $(VENV)/installed-test $@  # this one has all of theirs

$(VENV)/installed-docs: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) wsi-demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
