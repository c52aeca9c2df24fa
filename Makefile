# Two commands for a newcomer:
#   make demo    set up, train the built-in scene on this machine, show its scores and pictures
#   make test    set up, run the tests
#
# Both keep one virtual environment in .venv; a change of pyproject.toml or constraints.txt installs again.
# PYTHON picks the interpreter (3.11 or newer), VENV the folder, ARGS is appended to the command.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
KEY := $(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)
.PHONY: demo test lint types setup setup-dev clean

demo: setup
	$(BIN)/panbench fit --config configs/ligs_scannet.yaml $(ARGS)

# Waiting OpenMP threads that spin slow two processes on two cores down 10 to 100 times.
test: export OMP_WAIT_POLICY ?= passive
test: setup-dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

setup: $(VENV)/.installed-$(KEY)

setup-dev: $(VENV)/.installed-dev-$(KEY)

$(VENV)/.installed-$(KEY): | $(BIN)/python
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev-$(KEY): | $(BIN)/python
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed-$(KEY)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "panbench needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Setting up $(VENV) (once)."
	@$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
