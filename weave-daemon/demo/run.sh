#!/bin/sh
# `make demo`: builds Weave, starts a daemon on a private socket, makes one image, stops the daemon.
set -eu

here=$PWD
cd "$(dirname "$0")/../.."
target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')

now() { date +%s%N; }
since() { awk "BEGIN { printf \"%.1f s\", ($(now) - $1) / 1e9 }"; }

started=$(now)
cargo fetch --locked --quiet
fetched=$(since "$started")
echo "weave: building (the first time compiles the engine, which takes some minutes)"
started=$(now)
cargo build --release --locked -p weave-daemon -p weave-cli -p weave-conformance
built=$(since "$started")

private=$(mktemp -d)
daemon=
finish() {
    [ -z "$daemon" ] || { kill "$daemon" 2>/dev/null && wait "$daemon" || true; }
    rm -rf "$private"
}
trap finish EXIT
trap 'exit 130' INT TERM

echo "weave: starting weaved on a private socket and drawing a picture"
started=$(now)
"$target/release/weaved" --no-config --socket "$private/weave.sock" --threads 1 >"$private/log" 2>&1 &
daemon=$!
until "$target/release/weave" ping --socket "$private/weave.sock" >/dev/null 2>&1; do
    kill -0 "$daemon" 2>/dev/null || { cat "$private/log" >&2; echo "weave: weaved did not start" >&2; exit 1; }
    sleep 0.05
done
up=$(since "$started")

started=$(now)
prompt="a red circle on a blue background"
line=$("$target/release/weave" generate "$prompt" --seed 42 --socket "$private/weave.sock" \
    --force -o "$here/demo.png") || { status=$?; cat "$private/log" >&2; exit "$status"; }
made=$(since "$started")

echo
echo "$line"
echo "source $fetched, build $built, daemon up in $up, image $made (with loading the model)"
echo
echo "Try next:"
echo "  $target/release/weaved 2>weaved.log &"
echo "  $target/release/weave ping"
echo "  $target/release/weave generate 'a yellow triangle on black' -o triangle.png"
echo "  $target/release/weave gateway    # OpenAI's API, and a page at http://127.0.0.1:8080"
