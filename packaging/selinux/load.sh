#!/bin/sh
# load.sh [--build DIRECTORY]: build crashd's SELinux modules with checkmodule and semodule_package (Debian: checkpolicy,
# semodule-utils; Fedora: checkpolicy, policycoreutils), load them, and label crashd's files. With --build, only build.
# load.sh --remove takes them out again.
set -eu
here=$(cd -- "$(dirname -- "$0")" && pwd)

remove() {
    semodule -r crashd_permissive 2>/dev/null || :
    semodule -r crashd
    restorecon -R /usr/libexec/crashd-core /var/lib/crashd /run/crashd
}

build() {
    for name in crashd crashd_permissive; do
        checkmodule -M -m -o "$1/$name.mod" "$here/$name.te" >/dev/null
    done
    semodule_package -o "$1/crashd.pp" -m "$1/crashd.mod" -f "$here/crashd.fc"
    semodule_package -o "$1/crashd_permissive.pp" -m "$1/crashd_permissive.mod"
    rm -f "$1/crashd.mod" "$1/crashd_permissive.mod"
}

case ${1-} in
--build)
    build "${2:?a directory}"
    ;;
--remove)
    remove
    ;;
"")
    target=$(mktemp -d)
    trap 'rm -rf "$target"' EXIT
    build "$target"
    semodule -i "$target/crashd.pp" -i "$target/crashd_permissive.pp"
    restorecon -R /usr/libexec/crashd-core /var/lib/crashd /run/crashd
    echo "loaded; the handler's domain is permissive until: semodule -r crashd_permissive"
    ;;
*)
    echo "usage: load.sh [--build DIRECTORY | --remove]" >&2
    exit 2
    ;;
esac
