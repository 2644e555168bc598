# make demo: quantize the mini model and talk to it.  make test: everything that CI runs.
# make gpu-gate: compile all kernels for all GPUs, without one.  make gate TRITON=3.9.0: the same with another Triton.
# make sanitize: run each kernel once under compute-sanitizer, on a GPU.
# make fuzz: mutate checkpoint files for SECONDS=600 seconds; every one must be answered in one line.
# make report: rewrite the tables and plots of the documents from the committed results; make bench: measure on this CPU,
# make gpu-bench: on a GPU.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
BIN := $(VENV)/bin
MINI := examples/mini-chatglm

SECONDS ?= 600
TRITON ?= 3.7.1
GATE := benchmarks/kernel_gate.py --json benchmarks/results/kernel_gate.json

.PHONY: demo test lint fuzz report bench gpu-bench gpu-gate gate sanitize clean

demo: $(VENV)/.runtime
	$(BIN)/python tools/quantize.py --model $(MINI) --bits 8 --output $(DEMO)/mini-int8 --overwrite
	$(BIN)/python tools/quantize.py --model $(MINI) --bits 4 --output $(DEMO)/mini-int4 --overwrite
	$(BIN)/python tools/compare.py $(MINI) $(DEMO)/mini-int8 $(DEMO)/mini-int4 \
		--text examples/heldout.txt --questions examples/heldout.jsonl --ask "3加5等于几?"

test: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz.fuzz_checkpoint --seconds $(SECONDS)

report: $(VENV)/.dev
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python benchmarks/plots.py
	$(BIN)/python benchmarks/quality_report.py

bench: PLACE := cpu
gpu-bench: PLACE := gpu
bench gpu-bench: $(VENV)/.dev
	PYTHONPATH=. $(BIN)/python -m pytest benchmarks/bench_generate.py --benchmark-json=build/generate.json
	$(BIN)/python benchmarks/generate_report.py build/generate.json --json benchmarks/results/generate_$(PLACE).json

gpu-gate: $(VENV)/.dev
	PYTHONPATH=. $(BIN)/python $(GATE)

gate: $(VENV)/.dev
	$(BIN)/pip install --quiet --no-deps --upgrade --target build/triton-$(TRITON) triton==$(TRITON)
	PYTHONPATH=build/triton-$(TRITON):. $(BIN)/python $(GATE)

sanitize: $(VENV)/.dev
	compute-sanitizer --error-exitcode 1 $(BIN)/python -m pytest -m gpu -k each_kernel_once tests/triton_kernels

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"error: expected Python 3.11 or newer, got %d.%d; run make with PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.runtime: $(VENV)/.python setup.py constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.python setup.py constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info
