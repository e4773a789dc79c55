# Shared by deb.sh and rpm.sh: the installed tree of crashd, and the packages that it includes for the system's Python.
# POSIX sh; sourced after lib.sh, with $environment built of requirements-dev.lock.
# shellcheck shell=sh disable=SC2154

# Debian 12, Ubuntu 24.04, Debian 13, and Debian testing, Ubuntu 26.04 and Fedora. A newer Python needs one more directory; until
# then the launcher takes one of these, if it is still installed, and the handler needs none of it.
PYTHONS="3.11 3.12 3.13 3.14"

# What compresses best and runs fastest takes most of the time of a build: tests build with CRASHD_QUICK=1.
if [ "${CRASHD_QUICK:-}" = 1 ]; then
    DEB_COMPRESSION="-Zgzip -z1" RPM_PAYLOAD=w1.gzdio OPTIMISATION=-O0
else
    DEB_COMPRESSION="-Zxz -z6" RPM_PAYLOAD=w6.xzdio OPTIMISATION=-O2
fi

# Libraries of the distribution in place of those that wheels bring, each with Debian's package. The packages depend on
# them, and so does the build, which loads what it has made.
SYSTEM_LIBRARIES="liblzma.so.5=liblzma5 libzstd.so.1=libzstd1 libgomp.so.1=libgomp1 liblzo2.so.2=liblzo2-2
libsnappy.so.1=libsnappy1v5 libbz2.so.1=libbz2-1.0 libjson-c.so.5=libjson-c5"

find_missing_of_staging() {
    need binutils have strip
    need patchelf have patchelf
    need make have make
    for library in $SYSTEM_LIBRARIES; do
        need "${library#*=}" loads "${library%%=*}"
    done
}

# fill_bundles DIRECTORY: make a directory for each Python, with crashd and its locked packages; equal files are stored
# only once. With CRASHD_BUNDLES, a directory, the packages are taken from there, and left there the first time: who
# builds several kinds of packages need not fetch them for each.
fill_bundles() {
    bundles=$1
    take_or_make "${CRASHD_BUNDLES:-}" "$bundles" fill_with_locked
    cp -r "$here/crashd" "$bundles/shared/crashd"
    for version in $PYTHONS; do
        ln -s ../shared/crashd "$bundles/python$version/crashd"
    done
    find "$bundles" -name __pycache__ -prune -exec rm -rf {} +
    find "$bundles" -type f -exec chmod 644 {} +
}

# take_or_make KEPT TARGET COMMAND: fill a directory from KEPT if it is there; else by the command, and leave it in KEPT if
# that is a name.
take_or_make() (
    kept=$1 filled=$2
    mkdir -p "$filled"
    if [ -n "$kept" ] && [ -d "$kept" ]; then
        cp -a "$kept/." "$filled"
    else
        "$3"
        [ -z "$kept" ] || { mkdir -p "$(dirname "$kept")" && cp -a "$filled" "$kept.new" && mv "$kept.new" "$kept"; }
    fi
)

# python3-systemd comes from the distribution, because there are no wheels of systemd-python. With CRASHD_WHEELS, a directory,
# the wheels' files are taken from there, and left there the first time; what crashd builds and changes is done again.
fill_with_locked() {
    machine=$(uname -m)
    for version in $PYTHONS; do
        target=$bundles/python$version
        take_or_make "${CRASHD_WHEELS:+$CRASHD_WHEELS/$version}" "$target" fill_from_wheels
        [ -d "$bundles/built" ] || build_locked "$bundles/built"
        cp -a "$bundles/built/." "$target"
        rm -rf "$target/bin"
        find "$target" -name direct_url.json -delete
    done
    rm -rf "$bundles/lock" "$bundles/built"
    lighten "$bundles"
    share_same "$bundles"
    link_same "$bundles"
    own=$bundles/python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    [ ! -d "$own" ] || quietly "$python" -IBc 'import sys; sys.path.insert(0, sys.argv[1])
import bcrypt, capstone, obstore.store, os, pydantic, pyrage, pystack.engine, yaml, zstandard
os.uname().machine != "x86_64" or __import__("drgn")' "$own" ||
        refuse "what $own has cannot be loaded"
}

# fill_from_wheels: install what is locked for $version, as it was published, to $target.
fill_from_wheels() {
    "$environment/bin/python" "$here/packaging/lockfor.py" "$version" "$here/packaging/requirements.lock" \
        systemd-python pyinotify capstone >"$bundles/lock"
    pip_target --only-binary=:all: --python-version "$version" --implementation cp \
        --abi "cp$(echo "$version" | tr -d .)" --abi abi3 --abi none --platform "manylinux_2_36_$machine" \
        --platform "manylinux_2_28_$machine" --platform "manylinux_2_17_$machine" \
        --platform "manylinux2014_$machine" --platform "manylinux_2_12_$machine" \
        --platform "manylinux2010_$machine" --platform "manylinux1_$machine" --platform any
}

# fill_from_source NAME [OPTION...]: install one locked package, built here, to $target.
fill_from_source() {
    locked=$1
    shift
    sed -n "/^$locked==/,/^[^ ]*==/{/^$locked/p;/^ *--hash/p}" "$here/packaging/requirements.lock" |
        sed '$s/ \\$//' >"$bundles/lock"
    pip_target --no-build-isolation --use-pep517 --no-binary=:all: "$@"
}

# build_locked DIRECTORY: what has no wheels that fit, which is the same for each Python. capstone with only the machines that
# crashd/analyzers/instruction.py disassembles: less than half of the wheel's. Not from pip's cache, where the name does not
# say what it was built with.
build_locked() (
    target=$1
    fill_from_source pyinotify
    CAPSTONE_ARCHS="arm aarch64 x86" CAPSTONE_STATIC=no CAPSTONE_X86_ATT_DISABLE=yes CFLAGS="$OPTIMISATION -fstack-protector-strong" \
        LDFLAGS="-Wl,-z,relro,-z,now,-z,pack-relative-relocs"
    export CAPSTONE_ARCHS CAPSTONE_STATIC CAPSTONE_X86_ATT_DISABLE CFLAGS LDFLAGS
    fill_from_source capstone --no-cache-dir
)

# What no part of crashd uses, and what each distribution has: see nodebuginfod.c. Which libraries remain is in the SBOM.
lighten() {
    # before patchelf, because what strip makes of patchelf's segments cannot be loaded
    find "$1" -type f -name '*.so*' -exec strip --strip-unneeded {} +
    for version in $PYTHONS; do
        site=$1/python$version
        # the other of the two engines, and the headers, which only a compiler reads
        rm -rf "$site"/zstandard/_cffi.*.so "$site/zstandard/backend_cffi.py" "$site/capstone/include"
        # PyYAML's own parser reads one small file; models of pydantic 1, and its plugin for mypy, which also reads stubs
        rm -rf "$site"/yaml/_yaml.*.so "$site/_yaml" "$site/pydantic/v1" "$site/pydantic/mypy.py"
        find "$site" -name '*.pyi' -delete
        # commands that drgn registers for people (crashd disables its plugins)
        rm -rf "$site/drgn/commands/_crash"
        # for frameworks that crashd does not use, and experiments (drgn's would change the running kernel)
        rm -rf "$site/obstore/auth" "$site/obstore/fsspec.py" "$site/prometheus_client/aiohttp" \
            "$site/prometheus_client/bridge" "$site/prometheus_client/django" "$site/prometheus_client/twisted" \
            "$site/drgn/helpers/experimental" "$site/pydantic/experimental" "$site/annotated_types/test_cases.py"
        # what PyPI shows of a package, and lists of files as they were in the wheels; scanners read the fields before
        find "$site" -path '*.dist-info/METADATA' -exec sed -i '/^$/,$d' {} +
        find "$site" -path '*.dist-info/RECORD' -delete
        use_elfutils_of_drgn "$site"
        for old in "$site"/drgn.libs/libdebuginfod*.so; do
            [ -e "$old" ] || continue
            quietly gcc -std=c11 -O2 -Wall -Wextra -fPIC -shared -s -Wl,-soname,"${old##*/}" \
                -Wl,--no-as-needed,--version-script="$here/packaging/nodebuginfod.map" -o "$old" "$here/packaging/nodebuginfod.c" ||
                refuse "cannot build $old"
        done
        for directory in "$site/drgn.libs" "$site/pystack.libs"; do
            [ ! -d "$directory" ] || use_libraries_of_system "$directory"
        done
    done
}

# use_elfutils_of_drgn SITE: link pystack against the elfutils that drgn brings, if it is no older.
use_elfutils_of_drgn() {
    for name in libdw libelf; do
        own=$(echo "$1/pystack.libs/$name"-*.so)
        drgns=$(echo "$1/drgn.libs/$name"-*.so)
        [ -e "$own" ] && [ -e "$drgns" ] || return 0
        [ "$(elfutils_release "$own")" -le "$(elfutils_release "$drgns")" ] || return 0
    done
    for name in libdw libelf; do
        own=$(echo "$1/pystack.libs/$name"-*.so)
        drgns=$(echo "$1/drgn.libs/$name"-*.so)
        quietly patchelf --replace-needed "${own##*/}" "${drgns##*/}" "$1"/pystack/_pystack.*.so || refuse "patchelf failed"
    done
    # shellcheck disable=SC2016
    quietly patchelf --set-rpath '$ORIGIN/../drgn.libs' "$1"/pystack/_pystack.*.so || refuse "patchelf failed"
    rm -r "$1/pystack.libs"
}

# Of libdw-0-d71b572d.195.so, 195.
elfutils_release() {
    release=${1%.so}
    echo "${release##*.}"
}

# use_libraries_of_system DIRECTORY: link against these of the distribution, and delete what then nothing needs.
use_libraries_of_system() {
    users=$(find "$1" "$1/.." -maxdepth 1 -name '*.so*' -type f; find "$1/../pystack" -name '*.so*')
    replaced=
    for library in $SYSTEM_LIBRARIES; do
        soname=${library%%=*}
        for own in "$1/${soname%%.so*}"-*.so*; do
            [ -e "$own" ] || continue
            rm "$own"
            replaced="$replaced --replace-needed ${own##*/} $soname"
        done
    done
    # shellcheck disable=SC2086
    [ -z "$replaced" ] || quietly patchelf $replaced $(existing $users) || refuse "patchelf failed in $1"
    while :; do
        # shellcheck disable=SC2086
        needed=$(patchelf --print-needed $(existing $users))
        gone=
        for own in "$1"/*; do
            printf '%s\n' "$needed" | grep -qxF "${own##*/}" || { rm "$own" && gone=1; }
        done
        [ -n "$gone" ] || return 0
    done
}

existing() {
    for path in "$@"; do
        [ ! -e "$path" ] || printf '%s\n' "$path"
    done
}

pip_target() {
    quietly "$environment/bin/python" -m pip --disable-pip-version-check --no-input install --quiet --no-deps \
        --no-compile --require-hashes --target "$target" --upgrade "$@" -r "$bundles/lock" ||
        refuse "pip could not fill $target (see above; it needs a package index)"
}

# Move packages that all bundles share to one place, and put links in theirs. Of what only some share, the first has it.
share_same() {
    first=${PYTHONS%% *}
    mkdir "$1/shared"
    for entry in "$1/python$first"/*; do
        name=${entry##*/}
        same=1
        for version in $PYTHONS; do
            diff -rq "$entry" "$1/python$version/$name" >/dev/null 2>&1 || same=
        done
        [ -n "$same" ] || continue
        mv "$entry" "$1/shared/$name"
        for version in $PYTHONS; do
            rm -rf "$1/python$version/$name"
            ln -s "../shared/$name" "$1/python$version/$name"
        done
    done
    for version in $PYTHONS; do
        for later in $PYTHONS; do
            [ "$later" != "$version" ] || continue
            share_of_two "$1" "$version" "$later"
        done
    done
}

# share_of_two BUNDLES VERSION LATER: link what LATER has as VERSION has it.
share_of_two() {
    for entry in "$1/python$2"/*; do
        twin=$1/python$3/${entry##*/}
        [ ! -L "$entry" ] && [ ! -L "$twin" ] && diff -rq "$entry" "$twin" >/dev/null 2>&1 || continue
        rm -rf "$twin"
        ln -s "../python$2/${entry##*/}" "$twin"
    done
}

# Of equal files, keep the first, with links to it: what differs between the Pythons is mostly one library of each package.
link_same() {
    find "$1" -type f -size +1k -exec sha256sum {} + | LC_ALL=C sort | while read -r sum path; do
        if [ "$sum" = "${first_sum:-}" ]; then
            ln -sfr "$first_path" "$path"
        else
            first_sum=$sum first_path=$path
        fi
    done
}

# stage_tree ROOT: install everything that all kinds of packages share.
stage_tree() {
    root=$1
    install -d "$root/usr/bin" "$root/usr/libexec" "$root/usr/lib/crashd" "$root/usr/lib/systemd/system" \
        "$root/usr/lib/systemd/system-preset" "$root/usr/lib/sysctl.d" "$root/usr/lib/tmpfiles.d" \
        "$root/etc/crashd/crashd.toml.d" "$root/etc/crashd/hooks.d" "$root/usr/share/doc/crashd"
    fill_bundles "$root/usr/lib/crashd"
    "$environment/bin/python" -B "$here/packaging/sbom.py" "$root/usr/lib/crashd" "$(crashd_version)" \
        >"$root/usr/share/doc/crashd/crashd.cdx.json" || refuse "cannot list what the package brings (see above)"
    # what they list and is still here is in the list above
    rm -rf "$root"/usr/lib/crashd/*/*.dist-info/sboms
    for name in bin/crashd bin/crashctl bin/crashd-fleet libexec/crashd-analyze libexec/crashd-ship; do
        install -m 755 "$here/packaging/launcher" "$root/usr/$name"
    done
    install -m 755 "$here/packaging/crashd-kmsg" "$root/usr/libexec/crashd-kmsg"
    PYTHONPATH=$here "$environment/bin/python" -B -c 'import pathlib, sys
from crashd.store.handlerfile import install_handler
from crashd.store.paths import Paths
install_handler(Paths(pathlib.Path(sys.argv[1])))' "$root"
    install -m 644 "$here"/systemd/*.service "$here"/systemd/*.socket "$root/usr/lib/systemd/system"
    install -m 644 "$here/packaging/90-crashd.preset" "$root/usr/lib/systemd/system-preset/90-crashd.preset"
    install -m 644 "$here/packaging/crashd.tmpfiles" "$root/usr/lib/tmpfiles.d/crashd.conf"
    install -m 644 "$here/etc/sysctl.d/60-crashd.conf" "$root/usr/lib/sysctl.d/60-crashd.conf"
    install -m 644 "$here/etc/crashd.toml" "$root/etc/crashd/crashd.toml"
    for page in "$here"/packaging/man/*.rst; do
        name=${page##*/}
        name=${name%.rst}
        install -d "$root/usr/share/man/man${name##*.}"
        "$environment/bin/rst2man" "$page" | gzip -9n >"$root/usr/share/man/man${name##*.}/$name.gz"
    done
    install -D -m 644 "$here/packaging/completion/crashctl.bash" "$root/usr/share/bash-completion/completions/crashctl"
    install -D -m 644 "$here/packaging/completion/_crashctl" "$root/usr/share/zsh/vendor-completions/_crashctl"
    install -D -m 644 "$here/packaging/completion/crashctl.fish" \
        "$root/usr/share/fish/vendor_completions.d/crashctl.fish"
    install -d "$root/usr/share/crashd/prometheus" "$root/usr/share/crashd/grafana"
    install -m 644 "$here"/etc/prometheus/*.yml "$root/usr/share/crashd/prometheus"
    install -m 644 "$here"/etc/grafana/*.json "$root/usr/share/crashd/grafana"
    # not where SELinux and AppArmor would load them: that is for the administrator to decide
    install -d "$root/usr/share/crashd/selinux" "$root/usr/share/crashd/apparmor"
    install -m 644 "$here"/packaging/selinux/crashd* "$root/usr/share/crashd/selinux"
    install -m 755 "$here/packaging/selinux/load.sh" "$root/usr/share/crashd/selinux/load.sh"
    install -m 644 "$here/packaging/apparmor/crashd-core" "$root/usr/share/crashd/apparmor/crashd-core"
    install -m 644 "$here/README.md" "$root/usr/share/doc/crashd"
    gzip -9n <"$here/packaging/requirements.lock" >"$root/usr/share/doc/crashd/requirements.lock.gz"
}

# The time of files in packages: that of the last commit, so that the same tree makes the same package.
source_date() {
    printf '%s' "${SOURCE_DATE_EPOCH:-$(git -C "$here" log -1 --format=%ct 2>/dev/null || echo 0)}"
}

crashd_version() {
    sed -n 's/^__version__ = "\(.*\)"/\1/p' "$here/crashd/__init__.py"
}
