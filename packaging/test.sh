#!/bin/sh
# Run the tests that this machine allows: unit and integration always, system as root with
# CRASHD_TEST_SYSTEM=1 (then a skipped system test is a failure). Two processes run the tests;
# tests/conftest.py says which ones must share a process. Arguments go to pytest: `-n 0` uses one process.
set -eu

program=test.sh
here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
. "$here/packaging/lib.sh"

if [ "${CRASHD_TEST_SYSTEM:-}" = 1 ]; then
    provide find_missing find_missing_of_system_tier
else
    provide find_missing
fi
build_environment "$here/.venv-test" requirements-dev.lock
cd "$here"
exec "$environment/bin/python" -m pytest -n 2 "$@"
