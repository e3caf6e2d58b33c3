# The only commands to know: `make demo` shows what Rotary Press does, `make test` proves it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint format clean

demo: $(INSTALLED)
	$(BIN)/python -m examples.demo

test: $(INSTALLED) lint
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# pip keeps the wheels that it builds at home, and fails where that cannot be written.
NO_CACHE := $(shell test -w "$$HOME" || echo --no-cache-dir)

# Installed again when the dependencies change.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(NO_CACHE) --disable-pip-version-check -c constraints.txt -e '.[export,plugins,dev]'
	touch $@
