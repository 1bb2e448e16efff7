#!/usr/bin/env bash
# Installs what a build from source needs beyond Rust: a C compiler (zstd, ring) and npm (the web UI).
# Debian and Ubuntu; elsewhere it says what to install.
set -euo pipefail
missing=()
command -v cc >/dev/null || missing+=(gcc libc6-dev)
command -v npm >/dev/null || missing+=(nodejs npm)
[ ${#missing[@]} -eq 0 ] && exit 0
if ! command -v apt-get >/dev/null; then
  echo "Please install: ${missing[*]}" >&2
  exit 1
fi
sudo=""
[ "$(id -u)" -eq 0 ] || sudo=sudo
$sudo apt-get update -q
$sudo apt-get install -q -y --no-install-recommends "${missing[@]}"
