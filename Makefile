# Every target sets up what it needs in .venv; PYTHON picks the interpreter.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
KERNELS := $(wildcard custom_ops/native/*.txt custom_ops/native/*/*)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint $(CONSTRAINTS)

.PHONY: demo test check unit test-lowest test-space test-runtimes test-handoff test-ray test-sanitize test-wheel kernels fuzz soak \
	bench bench-methods bench-models bench-serve bench-mutations bench-verify baseline docs clean

demo: $(VENV)/demo.done  ## export, verify and run every reference checkpoint; out/demo/index.html shows what happened
	$(BIN)/poolexport demo --output out/demo --force

test: check unit  ## linters, types, import contracts, then the whole suite

check: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check

unit: $(VENV)/test.done
	$(BIN)/python -m pytest -q -n 2 --ledger

test-lowest:  ## the suite with the lowest versions that pyproject.toml admits, in an environment of its own
	$(MAKE) unit VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt

test-space: $(VENV)/test.done  ## ten times as many configurations of every method as the suite tries; half an hour
	POOLEXPORT_DRAWN=240 $(BIN)/python -m pytest -q -n 2 tests/conformance/test_space.py

test-runtimes: $(VENV)/test.done  ## one corpus of exports on every release of onnxruntime, each in .venv-ort; minutes
	$(BIN)/python tests/runtimes/run.py

test-handoff: $(VENV)/test.done  ## Triton's core and KServe's classes read what we wrote, each in .venv-handoff; minutes
	$(BIN)/python tests/handoff/oracles.py

test-ray: $(VENV)/test.done  ## a Ray cluster of two machines, replicas and machines killed, in .venv-ray; needs root; minutes
	$(BIN)/python tests/cluster/oracles.py

kernels:  ## compile the native kernels alone, into build/kernels; POOLEXPORT_KERNELS=FILE makes sessions use them
	cmake -S custom_ops/native -B build/kernels && cmake --build build/kernels --parallel 2

fuzz: $(VENV)/test.done  ## native kernels on shapes, values and attributes at random; FUZZ="--calls 1000000" for longer; minutes
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m native.fuzz $(FUZZ)

test-sanitize: $(VENV)/test.done  ## the kernels' tests and the fuzzer with AddressSanitizer and UBSan; minutes
	cmake -S custom_ops/native -B build/sanitize -DPOOLEXPORT_SANITIZE=address,undefined -DCMAKE_BUILD_TYPE=RelWithDebInfo
	cmake --build build/sanitize --parallel 2
	PYTHON=$(BIN)/python tests/native/sanitized.sh build/sanitize

test-wheel: $(VENV)/test.done  ## wheels built with and without a compiler work elsewhere, in .venv-wheel; minutes
	$(BIN)/python tests/native/wheel.py

soak: $(VENV)/test.done  ## a server under everything at once, by the hundred thousand; SOAK="--minutes 30" for longer; minutes
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m serve.soak $(SOAK)

bench: $(VENV)/test.done .venv-bench/openvino  ## time pooling in every form there is, native kernels among them; benchmarks/results/kernels.json; minutes
	PYTHONPATH=.venv-bench/openvino OMP_NUM_THREADS=1 $(BIN)/python benchmarks/kernels.py

# Not in .venv: the suite is about environments without it.
.venv-bench/openvino: $(CONSTRAINTS) | $(VENV)/test.done
	$(PIP) --no-deps --upgrade --target $@ openvino
	@touch $@

bench-methods: $(VENV)/test.done  ## time every method in torch and in onnxruntime; benchmarks/results/methods.json
	$(BIN)/python benchmarks/methods.py

bench-models: $(VENV)/test.done  ## time and memory of exporting whole networks; benchmarks/results/whole_models.json; an hour
	$(BIN)/python benchmarks/whole_models.py

bench-serve: $(VENV)/test.done  ## our server beside six others, each in .venv-bench; benchmarks/results/serving.json; 12 minutes
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/serving.py

bench-mutations: $(VENV)/test.done  ## plant faults into many networks: how many are caught, and laid at the right door; minutes
	$(BIN)/python benchmarks/mutations.py

bench-verify: $(VENV)/test.done  ## time and memory of a verdict, and of finding a planted fault; benchmarks/results/verification.json
	$(BIN)/python benchmarks/verification.py

baseline: $(VENV)/test.done  ## plain torch.onnx.export, with our table, and ours, on every case; benchmarks/results/baseline.json
	$(BIN)/python benchmarks/baseline.py

docs: $(VENV)/test.done  ## rewrite the generated tables of README, custom_ops and docs
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/regenerate.py

# torch goes first and pinned: any other order may replace it by a build of several gigabytes.
$(VENV)/torch.done: $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	@touch $@

$(VENV)/demo.done: $(VENV)/torch.done pyproject.toml $(KERNELS)
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/test.done: $(VENV)/torch.done pyproject.toml $(KERNELS)
	$(PIP) --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv .venv-lowest .venv-ort .venv-handoff .venv-ray .venv-wheel .venv-bench out build
