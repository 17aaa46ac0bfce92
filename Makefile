PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint clean

quickstart: .venv/.stamp
	@$(BIN)/sparsetrain run quickstart --against dense

test: .venv/.stamp lint
	@$(BIN)/python -m pytest -q

lint: .venv/.stamp
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format --check -q .
	@$(BIN)/pyrefly check

.venv/.stamp: pyproject.toml
	@echo "installing into .venv (a minute or two)"
	@$(PYTHON) -m venv .venv || { echo "python3 cannot make a virtual environment: install its venv package"; exit 1; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[test]"
	@touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
