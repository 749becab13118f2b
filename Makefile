# The verbs of this project; CI calls them too. docs/testing.md says what each check covers.

.DEFAULT_GOAL := build
.PHONY: help build gateway other-systems prebuilt cuda vulkan metal check-vulkan install uninstall deb check-deb \
	dist programs pages book check-containers check-packages test quick demo double leaks asan lint unit docs \
	api deny spec example dissector haproxy kubernetes prometheus conform sound sound-20 mutants mutants-all simulate fuzz fuzz-smoke units \
	bare-metal big-endian check-demo reliability bench instructions tools tools-test fetch

# Settings reach programs as they were given, by the environment: neither make nor a shell reads commands in them.
settings = PREFIX DESTDIR BUILT SEED FUZZ_SECONDS WEAVE_CUDA_SETUP
given = $(foreach name,$(settings),$(if $(filter-out undefined,$(origin $(name))),$(name)))
$(foreach name,$(given),$(eval override $(name) := $$(value $(name)))$(eval export $(name)))

help: ## list the verbs
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 18

build: tools fetch ## build everything, optimised
	cargo build --release --locked

# In separate folders, so that each build keeps its results and the CPU's program stays in place.
cuda: tools fetch ## weaved for NVIDIA GPUs: target/cuda/release/weaved; WEAVE_CUDA_ARCHITECTURES= chooses them
	nvcc=$$(.ci/cuda) && CUDACXX=$$nvcc \
		cargo build --release --locked -p weave-daemon --features cuda --target-dir target/cuda

vulkan: fetch ## weaved for GPUs with Vulkan: target/vulkan/release/weaved
	@.ci/need vulkan
	cargo build --release --locked -p weave-daemon --features vulkan --target-dir target/vulkan

# Apple's compiler has no OpenMP.
metal: fetch ## weaved for Apple's GPUs: target/metal/release/weaved; untested
	@.ci/need build
	cargo build --release --locked -p weave-daemon --no-default-features --features metal --target-dir target/metal

check-vulkan: vulkan ## compare the demo picture of Vulkan and CPU; works without a GPU
	@.ci/need vulkan-test
	@.ci/check-vulkan

# Installs the programs that `make` built. As root, unless you own PREFIX.
install: ## install programs, units, manual and completions under PREFIX (/usr/local); DESTDIR= stages them
	@packaging/install

uninstall: ## remove what `make install` installed
	@packaging/install --remove

deb: tools ## build a package for Debian and Ubuntu: target/dist
	@packaging/deb

check-deb: deb ## install, use and remove that package in a chroot; as root
	@packaging/check-deb target/dist/weave_*.deb

dist: tools ## build the package, a bill of materials and checksums: target/dist
	@packaging/dist

# The programs that tests in other languages start.
programs: ## build weaved without its engine, and weave, for tests: target/example/debug
	@.ci/shared target/example "" build --quiet --bin weaved --bin weave

pages: programs ## run the commands of README.md and docs/, check links
	@WEAVE=target/example/debug/weave WEAVED=target/example/debug/weaved docs/check.py

book: ## build the documentation as HTML: target/book/html
	@.ci/need book
	@docs/build

# Uses the programs that `make demo` builds; `make check-deb` does the same with programs for any processor.
check-packages: ## test make install, the package and the container files, with programs for this processor
	cargo build --release --locked --quiet -p weave-daemon -p weave-cli -p weave-conformance
	@packaging/check-install
	@rm -rf target/check-packages
	@BUILT=target/release OUT=target/check-packages packaging/deb
	@if unshare --mount --pid --fork true 2>/dev/null; then packaging/check-deb target/check-packages/weave_*.deb; else \
		echo "check-packages: NOT CHECKED: installing the package needs root and namespaces"; fi
	@packaging/check-containers

check-containers: ## check the container files without a container engine
	@packaging/check-containers

demo: tools ## build everything and draw one image with the demo model
	@weave-daemon/demo/run.sh

# Each string is a step; the lanes of a step, compute and wait, run beside each other.
test: tools-test fetch ## run every check, print the time of each
	@.ci/test "deny lint unit" \
		"double docs api bare-metal big-endian other-systems instructions | spec units example dissector gateway haproxy kubernetes prometheus conform sound mutants" \
		"simulate fuzz-smoke check-demo check-packages pages prebuilt"

# The gateway takes as many crates again as all of this.
quick = -p weave-core -p weave-client -p weave-trust -p weave-cli-base -p weave-cli --no-default-features
quick: ## check formatting, lints and the fast tests, without the engine and the gateway
	cargo fmt --check
	.ci/loops
	cargo clippy --locked $(quick) --all-targets -- -D warnings
	cargo clippy --locked -p weave-daemon --no-default-features --all-targets -- -D warnings
	cargo nextest run --locked $(quick)
	WEAVE_FEATURES=--no-default-features cargo nextest run --locked -p weave-daemon --no-default-features -E 'not binary(reliability)'

# Cargo.toml sets the oldest compiler: clippy refuses newer features, and other files must name the same version.
oldest = $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
lint: ## check formatting and clippy, with and without the engine
	grep -q 'Rust toolchain.*($(oldest) or' README.md
	grep -qx 'rust-version = "$(oldest)"' weave-core/firmware/Cargo.toml
	cargo fmt --check
	.ci/loops
	.ci/pinned
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p weave-cli --no-default-features --all-targets -- -D warnings
	cargo clippy --locked -p weave-core --features defmt -- -D warnings
	cargo clippy --locked -p weave-daemon --no-default-features --features simulator --all-targets -- -D warnings
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --locked --manifest-path fuzz/Cargo.toml --target-dir target \
		--features programs,engine --all-targets -- -D warnings

unit: ## run all Rust tests, and the documentation's examples
	cargo nextest run --locked --workspace
	cargo test --locked --workspace --doc

docs: ## build the Rust documentation without warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

api: ## compare weave-core's public items with their list
	.ci/public-api

deny: ## check licences, sources and advisories of the dependencies
	.ci/deny

spec: ## check the vectors against their schema and with Kaitai Struct's parsers
	spec/check/run

example: programs ## test the specification's Python client against weaved
	WEAVED=target/example/debug/weaved python3 -B spec/examples/test_client.py

dissector: programs ## test the Wireshark dissector on the vectors and on real traffic
	WEAVE=target/example/debug/weave WEAVED=target/example/debug/weaved python3 -B spec/check/dissector.py

gateway: programs ## test weave gateway with OpenAI's clients, a browser, and misbehaving clouds
	WEAVE=target/example/debug/weave WEAVED=target/example/debug/weaved weave-client/gateway/tests/run

haproxy: programs ## test HAProxy in front of three weaved, with one killed, stopped, drained or hanging
	WEAVED=target/example/debug/weaved python3 -B weave-daemon/deploy/test_haproxy.py

kubernetes: programs ## check the Kubernetes manifests, and run what they start, without a cluster
	WEAVE=target/example/debug/weave WEAVED=target/example/debug/weaved weave-daemon/deploy/kubernetes/check

prometheus: programs ## check alert rules, dashboard and the unit that writes the metrics
	WEAVED=target/example/debug/weaved python3 -B weave-daemon/deploy/prometheus/test_prometheus.py

conform: ## run weave-conform on weaved, weave, and the implementations in C, Go, Java, Python and TypeScript
	conformance/run

sound: ## test that weave-conform fails no sound server or client, however odd: those of conformance/sound
	conformance/build --quiet
	conformance/sound/check --quick

sound-20: ## the same with all cases, 20 times each, for hours: prints the figures of conformance/sound/README.md
	conformance/build --quiet
	conformance/sound/check --times 20

mutants: ## test that weave-conform finds planted defects: a sample of them
	conformance/build --quiet
	python3 -B conformance/mutants/run.py --sample

mutants-all: ## test that weave-conform finds each of the planted defects; takes half an hour
	conformance/build --quiet
	python3 -B conformance/mutants/run.py --sound 20 --jobs 2 --markdown

# Optimised, with all assertions; everything but the router is compiled as for `make unit`.
simulator = target/simulator/debug/examples/simulate
optimised = --config profile.dev.package.weave-core.opt-level=3 --config profile.dev.package.weave-daemon.opt-level=3
simulate: ## test the router in simulated worlds, from fixed seeds and a random one; SEED= repeats one
	.ci/shared target/simulator simulator build --quiet --example simulate $(optimised)
ifdef SEED
	$(simulator) 1 "$$SEED" --log
else
	.ci/shared target/simulator simulator nextest --test simulator
	$(simulator) 2000000 1
	$(simulator) 200000 $$(od -An -N6 -tu8 /dev/urandom)
endif

units: ## check the systemd units and their security rating
	.ci/units

fuzz: tools-test ## run all fuzz targets in turn, FUZZ_SECONDS (60) each
	fuzz/run time "$${FUZZ_SECONDS:-60}"

fuzz-smoke: ## run the fuzz targets on their corpus, also under valgrind, and on new inputs
	fuzz/run replay
	fuzz/run smoke

bare-metal: ## test weave-core on an emulated Cortex-M4: no panic, its flash and stack, all vectors
	.ci/bare-metal

big-endian: ## run weave-core's tests on an emulated big-endian processor
	.ci/big-endian

other-systems: ## compile for Windows and macOS
	.ci/other-systems

prebuilt: tools fetch ## build weaved with a prebuilt engine, as archives and as a shared library
	@.ci/prebuilt

double: ## test the engine's handle with an engine that fails on demand
	.ci/double

leaks: tools ## measure memory over 200 images and 100 cancelled ones, with the demo model: minutes
	cargo nextest run --locked -p weave-daemon --test engine --run-ignored only --no-capture -E 'test(/no_memory_behind/)'

asan: tools ## run the engine under AddressSanitizer, with cancellations: rebuilds it, many minutes
	.ci/asan

check-demo: ## run `make demo` twice, and a router without an engine: same bytes, no process left
	.ci/check-demo

# weave-daemon/tests/reliability.rs, which `make unit` runs with small numbers.
reliability: ## test weaved under load and abuse, with large numbers: prints the figures of weave-daemon/RELIABILITY.md
	RELIABILITY=long cargo test --release --locked --quiet -p weave-daemon --no-default-features \
		--target-dir target/example --test reliability -- --nocapture --test-threads=1

bench: ## measure everything, in less than 20 minutes: benches/RESULTS.md
	@.ci/need bench
	benches/run

instructions: ## compare the codec's instruction counts with their baseline
	.ci/instructions

tools:
	@.ci/need build

tools-test:
	@.ci/need test

fetch:
	@cargo fetch --locked --quiet
