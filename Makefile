# The verbs of this project. CI calls the same ones.

.DEFAULT_GOAL := build
.PHONY: help build gateway other-systems prebuilt cuda vulkan metal check-vulkan install uninstall deb check-deb dist pages book check-containers check-packages test quick demo double leaks asan lint unit docs api deny spec example dissector haproxy kubernetes conform mutants simulate fuzz fuzz-smoke units bare-metal big-endian check-demo reliability bench instructions tools tools-test fetch

help: ## list the verbs
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 18

build: tools fetch ## build everything, optimised
	cargo build --release --locked

# In folders of their own: each build keeps what it has made, and the CPU's program stays where it is.
cuda: tools fetch ## weaved for NVIDIA GPUs: target/cuda/release/weaved; WEAVE_CUDA_ARCHITECTURES= says for which
	nvcc=$$(WEAVE_CUDA_SETUP=$(WEAVE_CUDA_SETUP) .ci/cuda) && CUDACXX=$$nvcc \
		cargo build --release --locked -p weave-daemon --features cuda --target-dir target/cuda

vulkan: fetch ## weaved for GPUs with Vulkan: target/vulkan/release/weaved
	@.ci/need vulkan
	cargo build --release --locked -p weave-daemon --features vulkan --target-dir target/vulkan

# Apple's compiler has no OpenMP.
metal: fetch ## weaved for Apple's GPUs: target/metal/release/weaved; nobody has built it yet
	@.ci/need build
	cargo build --release --locked -p weave-daemon --no-default-features --features metal --target-dir target/metal

check-vulkan: vulkan ## the same picture with Vulkan as on the CPU; without a GPU too
	@.ci/need vulkan-test
	@.ci/check-vulkan

# Installs what `make` has built: as root, if PREFIX is not your own.
install: ## programs, units, manual and completions under PREFIX (/usr/local); DESTDIR= stages them
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" BUILT="$(BUILT)" packaging/install

uninstall: ## remove what `make install` has put there
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" packaging/install --remove

deb: tools ## a package for Debian and Ubuntu: target/dist
	@packaging/deb

check-deb: deb ## install that in a system of its own, use it, remove it; as root
	@packaging/check-deb target/dist/weave_*.deb

dist: tools ## the package, what is in it, and checksums: target/dist
	@packaging/dist

pages: ## the commands of README.md and docs/, against weaved; links
	cargo build --locked --quiet -p weave-daemon --no-default-features --target-dir target/example
	cargo build --locked --quiet -p weave-cli --target-dir target/example
	@WEAVE=target/example/debug/weave WEAVED=target/example/debug/weaved docs/check.py

book: ## the documentation as pages: target/book/html
	@.ci/need book
	@docs/build

# With the programs that `make demo` has built: `make check-deb` is the same for those that are for other processors.
check-packages: ## make install, the package and the container files, with the programs for this processor
	cargo build --release --locked --quiet -p weave-daemon -p weave-cli -p weave-conformance
	@packaging/check-install
	@rm -rf target/check-packages
	@BUILT=target/release OUT=target/check-packages packaging/deb
	@if unshare --mount --pid --fork true 2>/dev/null; then packaging/check-deb target/check-packages/weave_*.deb; else \
		echo "check-packages: NOT TRIED: installing the package takes root, and namespaces"; fi
	@packaging/check-containers

check-containers: ## the container files, as far as that goes without an engine for them
	@packaging/check-containers

demo: tools ## make one image with the built-in model, from nothing
	@weave-daemon/demo/run.sh

test: tools-test fetch lint unit double docs api deny spec example dissector gateway haproxy kubernetes conform mutants simulate fuzz-smoke units bare-metal big-endian instructions check-demo check-packages pages prebuilt other-systems ## every check there is
	@echo "make test: everything passed"

# The gateway takes as many crates again as all of this.
quick = -p weave-core -p weave-client -p weave-cli-base -p weave-cli --no-default-features
quick: ## formatting, lints and the fast tests, without the engine and the gateway
	cargo fmt --check
	cargo clippy --locked $(quick) --all-targets -- -D warnings
	cargo clippy --locked -p weave-daemon --no-default-features --all-targets -- -D warnings
	cargo nextest run --locked $(quick)
	WEAVE_FEATURES=--no-default-features cargo nextest run --locked -p weave-daemon --no-default-features -E 'not binary(reliability)'

# The oldest compiler is Cargo.toml's to say: clippy refuses what is newer, and who repeats it repeats the same.
oldest = $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
lint: ## formatting and clippy, with and without the engine
	grep -q 'Rust toolchain.*($(oldest) or' README.md
	grep -qx 'rust-version = "$(oldest)"' weave-core/firmware/Cargo.toml
	cargo fmt --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p weave-cli --no-default-features --all-targets -- -D warnings
	cargo clippy --locked -p weave-core --features defmt -- -D warnings
	cargo clippy --locked -p weave-daemon --no-default-features --features simulator --all-targets -- -D warnings
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --locked --manifest-path fuzz/Cargo.toml --features programs,engine --all-targets -- -D warnings

unit: ## all tests under nextest, and the documentation's examples
	cargo nextest run --locked --workspace
	cargo test --locked --workspace --doc

docs: ## the documentation, without a warning
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

api: ## what weave-core offers against its list
	.ci/public-api

deny: ## licences, sources and advisories of the dependencies
	.ci/deny

spec: ## the vectors against their schema, and read by Kaitai Struct's parsers
	spec/check/run

example: ## the Python client that was written from the text alone, against weaved
	cargo build --locked --quiet -p weave-daemon --no-default-features --target-dir target/example
	WEAVED=target/example/debug/weaved python3 -B spec/examples/test_client.py

dissector: ## the Wireshark dissector, with tshark, on the vectors and on real traffic
	cargo build --locked --quiet -p weave-daemon --no-default-features --target-dir target/example
	cargo build --locked --quiet -p weave-cli --target-dir target/example
	WEAVE=target/example/debug/weave WEAVED=target/example/debug/weaved python3 -B spec/check/dissector.py

gateway: ## weave gateway with OpenAI's clients for Python and JavaScript, a browser, and clouds that misbehave
	cargo build --locked --quiet -p weave-daemon --no-default-features --target-dir target/example
	cargo build --locked --quiet -p weave-cli --target-dir target/example
	WEAVE=target/example/debug/weave WEAVED=target/example/debug/weaved weave-client/gateway/tests/run

haproxy: ## the real HAProxy in front of three weaved, one of which is killed, stopped, drained, or hangs
	cargo build --locked --quiet -p weave-daemon --no-default-features --target-dir target/example
	WEAVED=target/example/debug/weaved python3 -B weave-daemon/deploy/test_haproxy.py

kubernetes: ## the manifests for Kubernetes against its schemas, and what they start, without a cluster
	cargo build --locked --quiet -p weave-daemon --no-default-features --target-dir target/example
	cargo build --locked --quiet -p weave-cli --target-dir target/example
	WEAVE=target/example/debug/weave WEAVED=target/example/debug/weaved weave-daemon/deploy/kubernetes/check

conform: ## weave-conform on weaved, weave, and the implementations in C, Go, Python and TypeScript
	conformance/run

mutants: ## whether weave-conform sees deliberate defects
	conformance/build --quiet
	python3 -B conformance/mutants.py

simulator = cargo run --quiet --locked --profile checked -p weave-daemon --no-default-features --features simulator \
	--example simulate --
simulate: ## the router in simulated worlds, from fixed seeds and a fresh one; SEED= repeats one of them
ifdef SEED
	$(simulator) 1 $(SEED) --log
else
	cargo nextest run --locked -p weave-daemon --no-default-features --features simulator --test simulator
	$(simulator) 2000000 1
	$(simulator) 200000 $$(od -An -N6 -tu8 /dev/urandom)
endif

units: ## whether systemd takes the units, and how little it leaves to weaved
	.ci/units

FUZZ_SECONDS = 60
fuzz: tools-test ## all fuzz targets in turn, FUZZ_SECONDS (60) each
	fuzz/run time $(FUZZ_SECONDS)

fuzz-smoke: ## the fuzz targets on their corpus, also under valgrind, and a million new inputs for each
	fuzz/run replay
	fuzz/run smoke

bare-metal: ## weave-core on an emulated Cortex-M4: no panic, its flash and stack, all vectors
	.ci/bare-metal

big-endian: ## weave-core's tests, all vectors among them, on an emulated big-endian processor
	.ci/big-endian

other-systems: ## whether what is meant for Windows and macOS compiles for them
	.ci/other-systems

prebuilt: tools fetch ## weaved with an engine that is built already, as archives and as a shared library
	@.ci/prebuilt

double: ## the handle over the engine, with an engine that goes wrong
	.ci/double

leaks: tools ## memory over 200 images and 100 that are given up, with the demo model: minutes
	cargo nextest run --locked -p weave-daemon --test engine --run-ignored only --no-capture -E 'test(/no_memory_behind/)'

asan: tools ## the engine under AddressSanitizer, images made and given up: builds it anew, many minutes
	.ci/asan

check-demo: ## `make demo` itself, twice, and by a router without an engine: the same bytes, and no process left
	.ci/check-demo

# The tests of weave-daemon/tests/reliability.rs, which `make unit` runs with small numbers.
reliability: ## weaved under load and abuse, with large numbers: prints what weave-daemon/RELIABILITY.md has
	RELIABILITY=long cargo test --release --locked --quiet -p weave-daemon --no-default-features \
		--target-dir target/example --test reliability -- --nocapture --test-threads=1

bench: ## measure everything, in less than 20 minutes: benches/RESULTS.md
	@.ci/need bench
	benches/run

instructions: ## instruction counts of the codec against their baseline
	.ci/instructions

tools:
	@.ci/need build

tools-test:
	@.ci/need test

fetch:
	@cargo fetch --locked --quiet
