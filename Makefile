# Two commands for a newcomer: `make demo` and `make test`. Both install what they need first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QUERY ?=
DOCS ?=
ARGS ?=
PEER ?=
# One version for all tests and figures, installed first so that nothing else picks another.
TORCH ?= torch==2.13.0

.PHONY: demo test test-fast test-gpu test-repeat bench bench-chaos bench-gpu bench-language-models bench-load bench-service lint types fix clean

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
	# Its bound on httpx is older than that of langchain-tests; what it calls has not changed since.
	$(BIN)/python -m pip install --quiet --no-deps "infinity-client>=0.0.76"
	touch $@

demo: $(VENV)/.installed-demo
	@$(BIN)/python examples/demo.py $(if $(DOCS),--docs "$(DOCS)") $(if $(QUERY),--query "$(QUERY)")

test: lint types $(VENV)/.installed-dev
	$(BIN)/python -m pytest

test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow"

test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m gpu

# What threads and event loops decide, in a new order each time. 50 minutes; ARGS="--count 5" for less.
test-repeat: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m "not slow" --count 100 --random-order-bucket=global -p no:cacheprovider \
		tests/core/test_concurrency.py tests/core/test_queue.py tests/doors/test_chaos.py \
		tests/core/test_stateful.py tests/core/test_leaving.py tests/core/test_dispatcher_*.py \
		tests/langchain/test_concurrency.py tests/llama_index_door/test_concurrency.py $(ARGS)

# Ten minutes of faults on purpose; ARGS="--seconds 60 --seed 2" for others.
bench-chaos: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/chaos.py $(ARGS)

# Twenty minutes on two cores; ARGS="--quick" for two. The models are kept in build/bench.
bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/bench.py --folder build/bench $(ARGS)

# Three quarters of an hour on two cores by reckoning, most of it the peers; fifteen minutes for ARGS='--workloads "short instruction"'.
bench-language-models: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/language_models.py --folder build/bench $(ARGS)

# Ten minutes on two cores; ARGS="--quick" for one. PEER names a Python that has infinity-emb.
bench-load: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/concurrency.py $(ARGS)
	$(BIN)/python benchmarks/overload.py $(ARGS)
	$(BIN)/python benchmarks/peers.py --folder build/bench $(if $(PEER),--peer-python $(PEER)) $(ARGS)

# Twenty minutes on two cores; ARGS="--quick" for two. PEER names a Python that has infinity-emb.
bench-service: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/service.py --folder build/bench $(if $(PEER),--peer-python $(PEER)) $(ARGS)

bench-gpu: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/gpu.py --folder build/bench $(ARGS)

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
