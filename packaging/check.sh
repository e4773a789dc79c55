#!/bin/sh
# Check a change before it is committed: format, lint, types and the quick part of the unit tier, at the same time.
# sh packaging/check.sh [PYTEST ARGUMENT...]; exit status 1 if a check fails. It takes less than a minute on two cores,
# with the caches of an earlier run. CI runs everything else: sh packaging/test.sh.
set -eu

program=check.sh
here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
. "$here/packaging/lib.sh"

# Test files that simulate days of crashes, or generate megabytes of input: these few take two thirds of the time of the
# unit tier, which would then not fit into the minute. After a change of such a module, run its tests by hand.
SLOW="
tests/unit/domain/crash/test_boundedrecord.py
tests/unit/domain/kdump/test_shellconf.py
tests/unit/domain/keep/test_kernel.py
tests/unit/domain/keep/test_process.py
tests/unit/domain/kernellog/test_printk.py
tests/unit/domain/kernellog/test_regions.py
tests/unit/domain/test_text.py
tests/unit/store/test_index.py
tests/unit/test_conftest.py
"
PYTHON_FILES="crashd tests packaging"

environment=${CRASHD_CHECK_ENVIRONMENT:-}
if [ -z "$environment" ]; then
    provide find_missing
    build_environment "$here/.venv-test" requirements-dev.lock
fi
cd "$here"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' HUP INT TERM

# begin NAME COMMAND...: run a check in the background; its output and its outcome go to files.
begin() {
    check=$1
    shift
    (
        started=$(date +%s)
        status=0
        "$@" >"$work/$check.output" 2>&1 </dev/null || status=$?
        printf '%s %s\n' "$status" "$(($(date +%s) - started))" >"$work/$check.outcome"
    ) &
}

run_python() {
    "$environment/bin/python" -m "$@"
}

check_types() {
    types=0 # `set -e` is off in a function whose status is asked for
    run_python mypy || types=1
    # the scripts are not a package, so mypy needs their names
    scripts=$(find packaging -name '*.py')
    # shellcheck disable=SC2086
    [ -z "$scripts" ] || run_python mypy $scripts || types=1
    return "$types"
}

check_unit() {
    ignored=
    for file in $SLOW; do ignored="$ignored --ignore=$file"; done
    # test_linters.py runs the other checks of this script once more
    # shellcheck disable=SC2086
    run_python pytest -n 2 -q --no-header --ignore=tests/unit/test_linters.py $ignored "$@" tests/unit
}

# shellcheck disable=SC2086
begin format run_python ruff format --check --diff $PYTHON_FILES
# shellcheck disable=SC2086
begin lint run_python ruff check --output-format=concise $PYTHON_FILES
begin types check_types
begin unit check_unit "$@"
wait

failed=
for check in format lint types unit; do
    read -r status seconds <"$work/$check.outcome"
    if [ "$status" -eq 0 ]; then
        say "$check: ok ($seconds s)"
    else
        failed="$failed $check"
        cat "$work/$check.output"
        say "$check: FAILED ($seconds s)"
    fi
done
case $failed in
*format* | *lint*) say "to correct: ruff format $PYTHON_FILES; ruff check --fix $PYTHON_FILES" ;;
esac
[ -z "$failed" ] || exit 1
