#!/bin/sh
# Build the image of the DaemonSet: sh packaging/kubernetes/build.sh [TAG], by default crashd:VERSION. Needs podman,
# docker or buildah, and what deb.sh needs.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd -P)
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$here/crashd/__init__.py")
tag=${1:-crashd:$version}
for builder in podman docker buildah ""; do
    [ -z "$builder" ] || ! command -v "$builder" >/dev/null || break
done
[ -n "$builder" ] || {
    echo "build.sh: needs podman, docker or buildah" >&2
    exit 2
}
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
sh "$here/packaging/deb.sh" "$context" >/dev/null
mv "$context"/*.deb "$context/crashd.deb"
"$builder" build -t "$tag" -f "$here/packaging/kubernetes/Containerfile" "$context"
