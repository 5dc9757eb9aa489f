# `make demo` and `make test` are one command each on a bare machine: they make .venv and install what it needs.
# PYTHON is any Python from 3.11 on.
PYTHON ?= python3
BIN = .venv/bin
export HF_HUB_DISABLE_TELEMETRY = 1
export GRADIO_ANALYTICS_ENABLED = False
export TOKENIZERS_PARALLELISM = false

.PHONY: install demo test test-lowest fast style bench clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

demo: install
	$(BIN)/think-tools demo --output-dir out/demo

test: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

fast: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "not slow"

# Not part of CI: the oldest releases that pyproject.toml allows.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --upgrade pip
	.venv-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt torch
	.venv-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable '.[all,dev]'
	HF_HUB_OFFLINE=1 .venv-lowest/bin/python -m pytest -m "not slow"

style: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: install
	$(BIN)/python -m tests.benchmarks.parsing
	$(BIN)/python -m tests.benchmarks.rewards
	$(BIN)/python -m tests.benchmarks.template_matrix
	$(BIN)/python -m tests.benchmarks.data

clean:
	rm -rf .venv .venv-lowest out build dist *.egg-info
