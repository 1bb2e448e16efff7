#!/usr/bin/env bash
# Measures ingest: one node alone, then three nodes, both on loopback with fresh data. Prints one line for each.
#
#   ops/bench/run-ingest.sh [arguments of `hindcast-bench ingest`]
#
# BIN_DIR=… uses the `hindcast` and `hindcast-bench` found there and builds nothing.
# DATA_ROOT=… is where data directories are made; else $TMPDIR, else /tmp. It should be a real disk.
# PORT=… is the first of the seven ports used; else 7480.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
if [ -z "${BIN_DIR:-}" ]; then
    (cd "$root" && cargo build --release -p hindcast -p hindcast-bench)
    BIN_DIR=${CARGO_TARGET_DIR:-$root/target}/release
fi
port=${PORT:-7480}
data=$(mktemp -d -p "${DATA_ROOT:-${TMPDIR:-/tmp}}" hindcast-bench.XXXXXX)
pids=()

stop() {
    for pid in "${pids[@]}"; do
        kill -TERM "$pid" 2>/dev/null || true
    done
    for pid in "${pids[@]}"; do
        wait "$pid" 2>/dev/null || true
    done
    pids=()
}
trap 'stop; rm -rf "$data"' EXIT
trap 'exit 130' INT TERM

# start LISTEN-PORT ARGUMENT…
start() {
    local listen=127.0.0.1:$1
    shift
    "$BIN_DIR/hindcast" server --listen "$listen" "$@" >"$data/log-${listen#*:}" 2>&1 &
    pids+=($!)
}

# ready LISTEN-PORT…
ready() {
    local one
    for one in "$@"; do
        for _ in $(seq 300); do
            if curl -fsS -o /dev/null "http://127.0.0.1:$one/-/ready" 2>/dev/null; then
                continue 2
            fi
            sleep 0.1
        done
        echo "the node on port $one was not ready after 30 s; its last lines:" >&2
        tail -n 20 "$data/log-$one" >&2
        exit 1
    done
}

# measure NAME ENDPOINTS ARGUMENT…
measure() {
    local name=$1 endpoints=$2 of=()
    shift 2
    for pid in "${pids[@]}"; do
        of+=(--pid "$pid")
    done
    echo "$name: $("$BIN_DIR/hindcast-bench" ingest --endpoint "$endpoints" "${of[@]}" "$@")"
}

echo "commit $(git -C "$root" rev-parse --short HEAD), $(nproc) processors, data on $(df --output=fstype "$data" | tail -1)"

start "$port" --data-dir "$data/alone"
ready "$port"
measure "one node" "http://127.0.0.1:$port" "$@"
stop

peers="127.0.0.1:$((port + 4)),127.0.0.1:$((port + 5)),127.0.0.1:$((port + 6))"
for id in 1 2 3; do
    start "$((port + id))" --id "$id" --data-dir "$data/node-$id" \
        --peer-listen "127.0.0.1:$((port + 3 + id))" --join "$peers"
done
ready "$((port + 1))" "$((port + 2))" "$((port + 3))"
measure "three nodes" "http://127.0.0.1:$((port + 1)),http://127.0.0.1:$((port + 2)),http://127.0.0.1:$((port + 3))" "$@"
