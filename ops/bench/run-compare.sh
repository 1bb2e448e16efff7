#!/usr/bin/env bash
# Compares ingest by Prometheus remote write with the peers that Debian ships: each server by itself, one after the other,
# on fresh data, with the same requests of the same fleet. Prints a line for each server and the ratios to ours.
#
#   ops/bench/run-compare.sh [arguments of `hindcast-bench ingest`]      default: --samples 20000000
#
# Needs `victoria-metrics` and `prometheus` on the PATH; one that is missing is left out and said so.
# BIN_DIR=… uses the `hindcast` and `hindcast-bench` found there and builds nothing.
# DATA_ROOT=… is where data directories are made; else $TMPDIR, else /tmp. It should be a real disk.
# PORT=… is the port used; else 7480.
#
# A confirmation of ours means fsynced; VictoriaMetrics confirms from memory, Prometheus from an unsynced log.
# Bytes per sample are of the data directory after compaction, index included, logs of recent writes left out.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
if [ -z "${BIN_DIR:-}" ]; then
    (cd "$root" && cargo build --release -p hindcast -p hindcast-bench)
    BIN_DIR=${CARGO_TARGET_DIR:-$root/target}/release
fi
port=${PORT:-7480}
[ $# -gt 0 ] || set -- --samples 20000000
data=$(mktemp -d -p "${DATA_ROOT:-${TMPDIR:-/tmp}}" hindcast-compare.XXXXXX)
pid=

stop() {
    if [ -n "$pid" ]; then
        kill -TERM "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
        pid=
    fi
}
trap 'stop; rm -rf "$data"' EXIT
trap 'exit 130' INT TERM

# ready URL
ready() {
    for _ in $(seq 300); do
        if curl -fsS -o /dev/null "$1" 2>/dev/null; then
            return
        fi
        sleep 0.1
    done
    echo "no answer from $1 after 30 s; its last lines:" >&2
    tail -n 20 "$data/log" >&2
    exit 1
}

# number NAME JSON: the first number of that name
number() {
    printf '%s' "$2" | tr -d ' \n' | sed -n "s/.*\"$1\":\([0-9.eE+-]*\).*/\1/p"
}

# bytes DIRECTORY…
bytes() {
    du -sb --total "$@" | tail -1 | cut -f1
}

results=()

# report NAME BYTES: pushes were told in $told
report() {
    local cpu rate rss acked
    cpu=$(number server_cpu_seconds_per_million "$told")
    rate=$(number samples_per_second "$told")
    rss=$(number rss_mb "$told")
    acked=$(number samples_acked "$told")
    results+=("$1 $cpu $rate $rss $(awk -v b="$2" -v n="$acked" 'BEGIN { print b / n }')")
    awk -v name="$1" -v cpu="$cpu" -v rate="$rate" -v rss="$rss" -v b="$2" -v n="$acked" 'BEGIN {
        printf "%-16s %10.0f samples/s  %.2f server CPU s per million  %5.0f MB resident  %.3f bytes per sample\n",
            name, rate, cpu, rss, b / n }'
}

push() {
    told=$("$BIN_DIR/hindcast-bench" ingest --protocol remote-write --endpoint "http://127.0.0.1:$port" --pid "$pid" \
        -o json "$@")
}

hindcast() {
    "$BIN_DIR/hindcast" server --listen "127.0.0.1:$port" --data-dir "$data/hindcast" >"$data/log" 2>&1 &
    pid=$!
    ready "http://127.0.0.1:$port/-/ready"
    push "$@"
    # The last manifest but one keeps its files: the second flush lets those go that were merged.
    for step in flush compact flush; do
        "$BIN_DIR/hindcast" storage "$step" --endpoint "http://127.0.0.1:$port" >>"$data/log" 2>&1
    done
    stop
    report hindcast "$(bytes "$data"/hindcast/shard-*)"
}

victoria_metrics() {
    victoria-metrics -httpListenAddr "127.0.0.1:$port" -storageDataPath "$data/vm" -retentionPeriod 12 >"$data/log" 2>&1 &
    pid=$!
    ready "http://127.0.0.1:$port/health"
    push "$@"
    curl -fsS -o /dev/null "http://127.0.0.1:$port/internal/force_flush"
    curl -fsS -o /dev/null "http://127.0.0.1:$port/internal/force_merge"
    sleep 5
    while curl -fsS "http://127.0.0.1:$port/metrics" | grep -q 'vm_active_force_merges [1-9]'; do
        sleep 1
    done
    stop
    report victoria-metrics "$(bytes "$data/vm")"
}

prometheus_() {
    printf 'global: {}\n' >"$data/prometheus.yml"
    prometheus --config.file "$data/prometheus.yml" --storage.tsdb.path "$data/prom" --web.enable-remote-write-receiver \
        --web.enable-admin-api --web.listen-address "127.0.0.1:$port" >"$data/log" 2>&1 &
    pid=$!
    ready "http://127.0.0.1:$port/-/ready"
    push "$@"
    curl -fsS -o /dev/null -X POST "http://127.0.0.1:$port/api/v1/admin/tsdb/snapshot"
    stop
    report prometheus "$(bytes "$data"/prom/snapshots)"
}

echo "commit $(git -C "$root" rev-parse --short HEAD), $(nproc) processors, data on $(df --output=fstype "$data" | tail -1)"
hindcast "$@"
if command -v victoria-metrics >/dev/null; then
    victoria_metrics "$@"
else
    echo "victoria-metrics is not installed: left out"
fi
if command -v prometheus >/dev/null; then
    prometheus_ "$@"
else
    echo "prometheus is not installed: left out"
fi
printf '%s\n' "${results[@]}" | awk '
    NR == 1 { cpu = $2; rate = $3; rss = $4; size = $5; next }
    { printf "hindcast to %-16s rate %.2f  CPU %.2f  memory %.2f  size %.2f\n", $1 ":", rate / $3, cpu / $2, rss / $4, size / $5 }'
