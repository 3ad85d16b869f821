# make install | demo | test | test-oldest | check | table | clean     (everything runs in .venv, made on first use)
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.atp-installed
# the first Python >= 3.11 that runs; override with `make PYTHON=/path/to/python install`
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo $$p; break; fi; done)

.PHONY: install demo test test-oldest check format table clean
.DEFAULT_GOAL := install

install: $(STAMP)

$(STAMP): pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "atp needs Python >= 3.11; install one, then: make PYTHON=/path/to/python3.11 install" >&2; exit 1; fi
	@echo "installing atp and its tools into $(VENV) with $$($(PYTHON) --version) (minutes the first time: torch is large)"
	@$(PYTHON) -m venv $(VENV) || { echo "venv is missing; on Debian or Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --disable-pip-version-check "torch>=2.9,<2.14" -e ".[dev]" 2>&1 | tee $(VENV)/install.log \
		| awk '/^Collecting|^Installing/ { print "  " substr($$0, 1, 100); fflush() }' \
		|| { tail -n 20 $(VENV)/install.log >&2; exit 1; }
	@touch $@
	@echo "installed; try: make demo"

demo: $(STAMP)
	@$(BIN)/atp demo --budget 0.4 --out out

test: $(STAMP)
	@$(BIN)/python -m pytest -q

test-oldest: $(STAMP)  # the oldest transformers permitted, over the installed one
	@$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --target build/transformers-5.20 "transformers==5.20.0"
	@PYTHONPATH=build/transformers-5.20 $(BIN)/python -m pytest -q

check: $(STAMP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

table: $(STAMP)
	@$(BIN)/python -m atp.evals.table

clean:
	rm -rf out build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
