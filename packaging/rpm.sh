#!/bin/sh
# Build the RPM: sh packaging/rpm.sh [DIRECTORY], by default dist/. Needs rpmbuild (on Debian: package rpm), binutils, patchelf and
# the packages of test.sh. It has the same files as the Debian package; see stage.sh. The same commit makes the same bytes.
set -eu

program=rpm.sh
here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
. "$here/packaging/lib.sh"
. "$here/packaging/stage.sh"

find_missing_of_rpm() {
    need rpm have rpmbuild
}

provide find_missing find_missing_of_staging find_missing_of_rpm
build_environment "$here/.venv-test" requirements-dev.lock

out=${1:-$here/dist}
mkdir -p "$out"
SOURCE_DATE_EPOCH=$(source_date)
export SOURCE_DATE_EPOCH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stage_tree "$work/tree"
# Directories that belong only to crashd, and every file.
(
    cd "$work/tree"
    find . -type d \( -path './etc/crashd*' -o -path './usr/lib/crashd*' -o -path './usr/share/crashd*' -o \
        -path './usr/share/doc/crashd' \) -printf '%%dir "/%P"\n'
    find . ! -type d ! -path ./etc/crashd/crashd.toml -printf '"/%P"\n'
) | LC_ALL=C sort >"$work/files"
printf '%%config(noreplace) "/etc/crashd/crashd.toml"\n' >>"$work/files"

quietly rpmbuild -bb --define "_topdir $work/rpm" --define "staged_tree $work/tree" --define "file_list $work/files" \
    --define "payload $RPM_PAYLOAD" --define "crashd_version $(crashd_version)" --define "crashd_release ${CRASHD_RPM_RELEASE:-1}" \
    --target "$(uname -m)" "$here/packaging/rpm/crashd.spec" || refuse "rpmbuild failed"
for rpm in "$work"/rpm/RPMS/*/*.rpm; do
    mv "$rpm" "$out/${rpm##*/}"
    printf '%s\n' "$out/${rpm##*/}"
done
give_back "$out"
