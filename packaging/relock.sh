#!/bin/sh
# Pin the dependencies again, with hashes, for every CPython from 3.11 on and every Linux machine.
# Needs `uv`. Arguments go to `uv pip compile`, e.g. --upgrade, or --upgrade-package NAME.
set -eu
unset CDPATH
cd -- "$(dirname -- "$0")/.."

compile() {
    output=$1
    shift
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-config \
        --no-emit-index-url --no-emit-find-links --custom-compile-command "packaging/relock.sh" \
        --output-file "packaging/$output" "$@"
}

compile requirements-build.lock "$@" packaging/requirements-build.in
compile requirements.lock --extra fleet "$@" pyproject.toml
compile requirements-fleet.lock --extra fleet-server "$@" pyproject.toml
compile requirements-dev.lock --group dev --extra fleet --extra fleet-server --constraints packaging/requirements-build.lock "$@" pyproject.toml
