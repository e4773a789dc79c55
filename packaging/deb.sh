#!/bin/sh
# Build the Debian package: sh packaging/deb.sh [DIRECTORY], by default dist/. Needs dpkg-dev, binutils, patchelf and the
# packages of test.sh. The package includes dependencies that the distribution lacks, locked and checked by hash, for the
# Python of each supported release; see stage.sh. The same commit makes the same bytes.
set -eu

program=deb.sh
here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
. "$here/packaging/lib.sh"
. "$here/packaging/stage.sh"

find_missing_of_deb() {
    need dpkg-dev have dpkg-deb
    need xz-utils have xz
}

provide find_missing find_missing_of_staging find_missing_of_deb
build_environment "$here/.venv-test" requirements-dev.lock

out=${1:-$here/dist}
mkdir -p "$out"
SOURCE_DATE_EPOCH=$(source_date)
export SOURCE_DATE_EPOCH
deb_version=$(crashd_version)${CRASHD_DEB_REVISION:--1}
architecture=$(dpkg --print-architecture)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/tree

stage_tree "$tree"
install -d "$tree/DEBIAN" "$tree/usr/share/lintian/overrides"
for script in postinst prerm postrm; do
    install -m 755 "$here/packaging/deb/$script" "$tree/DEBIAN/$script"
done
install -D -m 755 "$here/packaging/deb/rtupdate" "$tree/usr/share/python3/runtime.d/crashd.rtupdate"
install -m 644 "$here/packaging/deb/copyright" "$tree/usr/share/doc/crashd/copyright"
install -m 644 "$here/packaging/deb/lintian-overrides" "$tree/usr/share/lintian/overrides/crashd"
gzip -9n <"$here/NEWS.md" >"$tree/usr/share/doc/crashd/NEWS.gz"
{
    printf 'crashd (%s) unstable; urgency=medium\n\n  * See NEWS.\n\n' "$deb_version"
    printf ' -- %s  %s\n' "crashd maintainers <maintainers@crashd.dev>" "$(date -R -u -d "@$SOURCE_DATE_EPOCH")"
} | gzip -9n >"$tree/usr/share/doc/crashd/changelog.Debian.gz"
printf '/etc/crashd/crashd.toml\n' >"$tree/DEBIAN/conffiles"
size=$(du -sk --apparent-size --exclude=DEBIAN "$tree" | cut -f1)
sed -e "s/@VERSION@/$deb_version/; s/@ARCHITECTURE@/$architecture/; s/@SIZE@/$size/" \
    "$here/packaging/deb/control" >"$tree/DEBIAN/control"
(cd "$tree" && find . -type f ! -path './DEBIAN/*' -printf '%P\0' | LC_ALL=C sort -z | xargs -0 md5sum) >"$work/sums"
mv "$work/sums" "$tree/DEBIAN/md5sums"
chmod 644 "$tree/DEBIAN/md5sums" "$tree/DEBIAN/conffiles" "$tree/DEBIAN/control"
find "$tree" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
deb=$out/crashd_${deb_version}_$architecture.deb
# shellcheck disable=SC2086
quietly dpkg-deb --root-owner-group $DEB_COMPRESSION --build "$tree" "$deb" || refuse "dpkg-deb failed"
give_back "$out"
printf '%s\n' "$deb"
