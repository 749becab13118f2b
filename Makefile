# The verbs of this project. CI calls the same ones.

.DEFAULT_GOAL := build
.PHONY: help build test quick demo lint unit docs deny spec example dissector bare-metal firmware check-demo bench instructions tools tools-test fetch

help: ## list the verbs
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

build: tools fetch ## build everything, optimised
	cargo build --release --locked

demo: tools ## make one image with the built-in model, from nothing
	@weave-daemon/demo/run.sh

test: tools-test fetch lint unit docs deny spec example dissector bare-metal firmware check-demo ## every check there is
	@echo "make test: everything passed"

quick: ## formatting, lints and the fast tests, without the engine
	cargo fmt --check
	cargo clippy --locked -p weave-core -p weave-client --all-targets -- -D warnings
	cargo clippy --locked -p weave-daemon --no-default-features --all-targets -- -D warnings
	cargo nextest run --locked -p weave-core -p weave-client
	cargo nextest run --locked -p weave-daemon --no-default-features

lint: ## formatting and clippy, with and without the engine
	cargo fmt --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p weave-core --features defmt -- -D warnings
	cargo clippy --locked -p weave-daemon --no-default-features --all-targets -- -D warnings

unit: ## all tests under nextest, and the documentation's examples
	cargo nextest run --locked --workspace
	cargo test --locked --workspace --doc

docs: ## the documentation, without a warning
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

deny: ## licences, sources and advisories of the dependencies
	.ci/deny

spec: ## the vectors against their schema, and read by Kaitai Struct's parsers
	spec/check/run

example: ## the Python client that was written from the text alone, against weaved
	cargo build --locked --quiet -p weave-daemon --no-default-features --target-dir target/example
	WEAVED=target/example/debug/weaved python3 -B spec/examples/test_client.py

dissector: ## the Wireshark dissector, with tshark, on the vectors and on real traffic
	cargo build --locked --quiet -p weave-daemon --no-default-features --target-dir target/example
	cargo build --locked --quiet -p weave-client --target-dir target/example
	WEAVE=target/example/debug/weave WEAVED=target/example/debug/weaved python3 -B spec/check/dissector.py

bare-metal: ## weave-core for a microcontroller
	.ci/bare-metal

firmware: ## all vectors through weave-core on an emulated Cortex-M4
	.ci/firmware

check-demo: ## `make demo` itself, twice: the same bytes, and no process left
	.ci/check-demo

bench: ## how long the codec takes
	cargo bench --locked -p weave-benches --bench codec

instructions: ## instruction counts of the codec against their baseline
	.ci/instructions

tools:
	@.ci/need build

tools-test:
	@.ci/need test

fetch:
	@cargo fetch --locked --quiet
