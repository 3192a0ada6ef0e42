# Two commands for a newcomer: `make demo` and `make test`. Both install what they need first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QUERY ?=
DOCS ?=
# Installed first and by its exact version, so that no other package picks a far larger build of it.
TORCH ?= torch==2.13.0

.PHONY: demo test test-fast lint types fix wheel-test clean

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

# The demo runs on the embedded model, which needs no torch.
$(VENV)/.installed-demo: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[onnx,langchain,llama-index,eval]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[all]"
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

demo: $(VENV)/.installed-demo
	@$(BIN)/python examples/demo.py $(if $(DOCS),--docs "$(DOCS)") $(if $(QUERY),--query "$(QUERY)")

test: lint types $(VENV)/.installed-dev
	$(BIN)/python -m pytest

test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

fix: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
