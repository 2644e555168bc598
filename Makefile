# make demo: quantize the mini model and talk to it.  make test: the tests that are not slow, in JOBS=2 processes.
# make nightly: all tests, slow ones too, the emulator, make fuzz (half an hour) and the gate; in a virtual
# environment of its own.  make nightly-sample: slow tests for SAMPLE=180 seconds, chosen by the commit's hash, as in CI.
# make gpu-gate: compile all kernels for all GPUs, without one.  make gate TRITON=3.9.0: the same with another Triton.
# make emulate: run all kernels as compiled for all GPUs, on an emulator of their PTX, without a GPU (20 minutes).
# make sanitize: run each kernel once under compute-sanitizer, on a GPU.
# make gpu-test, gpu-bench, gpu-tune, gpu-profile: on a GPU, with PYTHON's own torch and Triton, no network and no
# virtual environment; each under 10 minutes; results go to OUT. With DRY=1 they run on a CPU, small, to see that they run.
# make fuzz: mutate checkpoints, tokenizers, tools, chat files, training data and requests, each for SECONDS=600, two at
# a time; every fault must be answered in one line.
# make report: rewrite the tables and plots of the documents from the committed results; make bench: measure on this CPU.
# make history: add a few figures of this commit and machine to benchmarks/results/history.csv.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
BIN := $(VENV)/bin
MINI := examples/mini-chatglm

JOBS ?= 2
SECONDS ?= 600
SAMPLE ?= 180
TRITON ?= 3.7.1
GATE := -m benchmarks.kernels.kernel_gate --json benchmarks/results/kernel_gate.json

OUT ?= build/gpu
DRY ?=
GPU := env PYTHONPATH=. PYTHONUNBUFFERED=1 $(PYTHON)
GPU_TESTS := tests/triton_kernels tests/generation/test_engine_on_gpu.py
GPU_MODELS := $(if $(DRY),-k "chatglm2-6b and (int4 or int8) and 128",-k "not chatglm2-6b")

# A process for each core, with one thread: two threads each would wait for each other, and take twice as long.
PARALLEL := env OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test nightly nightly-here nightly-sample lint fuzz report bench history gpu-gate gate emulate sanitize gpu-test gpu-bench gpu-tune gpu-profile clean

demo: $(VENV)/.runtime
	$(BIN)/python tools/quantize.py --model $(MINI) --bits 8 --output $(DEMO)/mini-int8 --overwrite
	$(BIN)/python tools/quantize.py --model $(MINI) --bits 4 --output $(DEMO)/mini-int4 --overwrite
	$(BIN)/python tools/compare.py $(MINI) $(DEMO)/mini-int8 $(DEMO)/mini-int4 \
		--text examples/heldout.txt --questions examples/heldout.jsonl --ask "3加5等于几?"

test: $(VENV)/.dev
	$(PARALLEL) -m "not slow"

nightly:
	$(MAKE) nightly-here VENV=build/nightly

# One process, with as many threads as torch takes: what make test does not see.
nightly-here: $(VENV)/.nightly build/clients/.installed
	$(BIN)/python -m pytest --durations=20
	$(MAKE) emulate
	$(MAKE) fuzz
	PYTHONPATH=. $(BIN)/python -m benchmarks.kernels.kernel_gate

nightly-sample: $(VENV)/.dev
	$(PARALLEL) -m slow --sample-seconds $(SAMPLE) --sample-of "$$(git rev-parse HEAD || echo none)"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz.fuzzer --seconds $(SECONDS) --jobs $(JOBS)

report: $(VENV)/.dev
	$(BIN)/python -m benchmarks.report.tables
	$(BIN)/python -m benchmarks.report.plots
	$(BIN)/python -m tests.hf.cases

bench: $(VENV)/.dev
	mkdir -p build
	PYTHONPATH=. $(BIN)/python -m pytest benchmarks/speed/bench_generate.py --benchmark-json=build/generate.json
	$(BIN)/python -m benchmarks.report.condense build/generate.json --json benchmarks/results/generate_cpu.json

history: $(VENV)/.dev
	$(BIN)/python -m benchmarks.history

gpu-gate: $(VENV)/.dev
	PYTHONPATH=. $(BIN)/python $(GATE)

gate: $(VENV)/.dev
	$(BIN)/pip install --quiet --no-deps --upgrade --target build/triton-$(TRITON) triton==$(TRITON)
	PYTHONPATH=build/triton-$(TRITON):. $(BIN)/python $(GATE)

emulate: $(VENV)/.dev
	set -e; for sm in 75 80 86 89 90 120; do \
		EMULATED_SM=$$sm $(BIN)/python -m pytest -q -p no:cacheprovider tests/triton_kernels/on_cpu; \
	done

sanitize:
	compute-sanitizer --tool memcheck --error-exitcode 1 $(GPU) -m pytest -m gpu -k each_kernel_once tests/triton_kernels
	compute-sanitizer --tool racecheck --error-exitcode 1 $(GPU) -m pytest -m gpu -k each_kernel_once tests/triton_kernels

gpu-test:
ifdef DRY
	TRITON_INTERPRET=1 $(GPU) -m pytest -q -p no:cacheprovider tests/triton_kernels/on_cpu
endif
	$(GPU) -m pytest -q -p no:cacheprovider -m gpu $(GPU_TESTS)

gpu-bench:
	mkdir -p $(OUT)
	QUICK=1 $(GPU) -m pytest -q -p no:cacheprovider benchmarks/kernels/bench_linear.py \
		--benchmark-json=$(OUT)/linear.json $(if $(DRY),-k "4096x4096 and ours")
	QUICK=1 $(if $(DRY),LAYERS=1) $(GPU) -m pytest -q -p no:cacheprovider benchmarks/speed/bench_generate.py \
		--benchmark-json=$(OUT)/generate.json $(GPU_MODELS)
	$(GPU) -m benchmarks.report.tables --linear $(OUT)/linear.json > $(OUT)/linear.md
	$(GPU) -m benchmarks.report.condense $(OUT)/generate.json --json $(OUT)/generate_gpu.json

gpu-tune:
	mkdir -p $(OUT)
	$(GPU) -m benchmarks.kernels.gpu_tune $(if $(DRY),--dry) --json $(OUT)/launch.json

gpu-profile:
	$(GPU) -m benchmarks.kernels.gpu_profile $(if $(DRY),--dry) --output $(OUT)

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"error: expected Python 3.11 or newer, got %d.%d; run make with PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.runtime: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

$(VENV)/.nightly: $(VENV)/.dev
	$(BIN)/pip install --quiet -c constraints.txt -e ".[nightly]"
	touch $@

# Clients that want older packages than constraints.txt has.
build/clients/.installed: examples/clients/requirements.txt
	$(PYTHON) -m venv build/clients
	build/clients/bin/pip install --quiet -r $<
	touch $@

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info
