# `make serve` and `make test` are all that a newcomer needs; both fetch ONNX Runtime by themselves.

PYTHON ?= python3
CARGO ?= cargo
ARGS ?=

# ONNX Runtime is taken from its Python wheel, which needs pip and no particular Python: nothing of it is run.
ORT_PACKAGE ?= onnxruntime
ORT_VERSION ?= 1.31.1
ORT_DIR ?= .ort
ORT_PLATFORM ?= $(shell case "$$(uname -s)-$$(uname -m)" in \
	(Linux-x86_64) echo manylinux_2_28_x86_64;; \
	(Linux-aarch64) echo manylinux_2_28_aarch64;; \
	(Darwin-arm64) echo macosx_14_0_arm64;; esac)
ORT_STAMP = $(ORT_DIR)/$(ORT_PACKAGE)-$(ORT_VERSION).stamp

.PHONY: help serve test interleavings test-training study ort lint deny bench bench-fit bench-serving bench-growth bench-lite0 \
	bench-scaled fuzz clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: ort ## Build a release and serve the model in models/ on http://127.0.0.1:8000 (ARGS="..." adds flags)
	$(CARGO) run --release --locked -- serve $(ARGS)

test: ort ## Run all tests
	$(CARGO) test --locked $(ARGS)

interleavings: ## Run the batcher and the registry under a model checker, in many orders of their steps
	$(CARGO) test --locked --lib --features shuttle interleavings

test-training: ## Run the tests of models/training (torch is too large for `make test`; those of the binary need a release build)
	$(MAKE) -C models/training test

study: ort ## Train with four samplers, fit every head on each, write docs/STUDY.md (torch; under an hour on two cores)
	test -n "$(EQUIPOISE_BIN)" || $(CARGO) build --release --locked
	$(MAKE) -C models/training study

lint: ## Check formatting, lints and documentation
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps

deny: ## Check licences, sources, bans and advisories of the dependencies (ADVISORY_DB=folder or URL replaces RustSec's)
	CARGO="$(CARGO)" scripts/deny.sh

bench: ort ## Run the benchmarks
	$(CARGO) bench --locked $(ARGS)

BENCH_FIT_VENV = .work/bench-fit/.venv

bench-fit: ort $(BENCH_FIT_VENV)/ready ## Time fits at the size of ImageNet-LT, or EQUIPOISE_BENCH_SIZE=inaturalist-2018, beside torch (2 GB, ten minutes)
	EQUIPOISE_BENCH_PYTHON=$(BENCH_FIT_VENV)/bin/python $(CARGO) bench --locked --bench fit

$(BENCH_FIT_VENV)/ready: benches/fit_requirements.txt
	$(PYTHON) -m venv $(BENCH_FIT_VENV)
	$(BENCH_FIT_VENV)/bin/pip install --quiet --requirement benches/fit_requirements.txt
	touch $@

BENCH_SERVING = .work/bench-serving
# A directory with EfficientNet-Lite0, for bench-serving to take in too.
BENCH_LITE0 ?= $(wildcard $(BENCH_SERVING)/lite0)

bench-serving: ort $(BENCH_SERVING)/.venv/ready ## Compare with FastAPI, LitServe and mosec on this machine's CPU (7 minutes; ARGS="--json" or "--requests N")
	$(CARGO) bench --locked --bench serving -- beside --python $(BENCH_SERVING)/.venv/bin/python \
		--model models/icons30 $(addprefix --model ,$(BENCH_LITE0)) $(ARGS)

$(BENCH_SERVING)/.venv/ready: benches/peers/requirements.txt
	$(PYTHON) -m venv $(BENCH_SERVING)/.venv
	$(BENCH_SERVING)/.venv/bin/pip install --quiet --requirement benches/peers/requirements.txt
	touch $@

bench-growth: ort ## Measure what more pixels, heads, models, classes and connections cost (5 minutes; ARGS="--only heads" or "--json")
	$(CARGO) bench --locked --bench serving -- growth $(addprefix --model ,$(BENCH_LITE0)) $(ARGS)

bench-lite0: ort ## Make EfficientNet-Lite0 for the next bench-serving, which then takes 10 minutes more (torch: 6 GB of disk)
	$(PYTHON) -m venv $(BENCH_SERVING)/.venv-lite0
	$(BENCH_SERVING)/.venv-lite0/bin/pip install --quiet --requirement benches/efficientnet_lite0/requirements.txt
	$(BENCH_SERVING)/.venv-lite0/bin/python benches/efficientnet_lite0/export.py $(BENCH_SERVING)/lite0.onnx
	rm -rf $(BENCH_SERVING)/lite0
	$(CARGO) run --release --locked -- import $(BENCH_SERVING)/lite0.onnx -o $(BENCH_SERVING)/lite0 --name lite0 \
		--pre-crop 0.875 --resize 224,224 --interpolation bicubic --mean 0.498,0.498,0.498 --std 0.502,0.502,0.502

BENCH_SCALED = .work/bench-scaled
BUILT = $${CARGO_TARGET_DIR:-target}/release/equipoise

bench-scaled: ort $(BENCH_SCALED)/.venv/ready ## What decode = "scaled" costs in accuracy, after bench-lite0 (cmake, nasm; 600 MB of disk, ten minutes)
	@test -n "$(BENCH_LITE0)" || { echo "run make bench-lite0 first, or give BENCH_LITE0=DIR"; exit 1; }
	$(CARGO) build --release --locked
	cp $(BUILT) $(BENCH_SCALED)/equipoise-zune
	$(CARGO) build --release --locked --features turbojpeg
	cp $(BUILT) $(BENCH_SCALED)/equipoise-turbojpeg
	$(BENCH_SCALED)/.venv/bin/python benches/scaled_decode/compare.py --scaled-binary $(BENCH_SCALED)/equipoise-turbojpeg \
		--exact-binary $(BENCH_SCALED)/equipoise-zune --lite0 $(BENCH_LITE0) --icons models/icons30 --work $(BENCH_SCALED)

$(BENCH_SCALED)/.venv/ready: benches/scaled_decode/requirements.txt
	$(PYTHON) -m venv $(BENCH_SCALED)/.venv
	$(BENCH_SCALED)/.venv/bin/pip install --quiet --requirement benches/scaled_decode/requirements.txt
	touch $@

FUZZ ?= image
FUZZ_SECONDS ?= 600
FUZZ_SEEDS_image = ../tests/data/preprocess ../tests/data/broken
FUZZ_SEEDS_onnx_import = ../tests/data/onnx
FUZZ_SEEDS = $(or $(FUZZ_SEEDS_$(FUZZ)),corpus/$(FUZZ))

fuzz: ort ## Feed FUZZ=image, features, head_file, onnx_import or http_body with bytes for FUZZ_SECONDS=600 (cargo-fuzz, nightly)
	mkdir -p fuzz/found/$(FUZZ)
	cd fuzz && $(CARGO) +nightly fuzz run --fuzz-dir . $(FUZZ) found/$(FUZZ) $(FUZZ_SEEDS) -- -max_total_time=$(FUZZ_SECONDS)

ort: $(ORT_STAMP) ## Fetch ONNX Runtime into .ort/

$(ORT_STAMP):
	@test -n "$(ORT_PLATFORM)" || { echo "no wheel is known for $$(uname -sm): set ORT_PLATFORM, or ORT_DYLIB_PATH to a library of your own"; exit 1; }
	rm -rf $(ORT_DIR)
	PIP_ROOT_USER_ACTION=ignore $(PYTHON) -m pip install --quiet --disable-pip-version-check --target $(ORT_DIR) --no-deps \
		--only-binary=:all: --python-version 3.12 --implementation cp --platform $(ORT_PLATFORM) $(ORT_PACKAGE)==$(ORT_VERSION)
	touch $@

clean: ## Remove what was built and fetched
	$(CARGO) clean
	rm -rf $(ORT_DIR)
