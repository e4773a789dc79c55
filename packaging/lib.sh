# Shared by run.sh and test.sh: what the operating system must give, and the locked environment.
# POSIX sh; sourced with $program (for messages) and $here (the clone, absolute) set.
# Exit status 2 is for all that must be put right before anything can begin.
# shellcheck shell=sh

: "${program:?}" "${here:?}"
umask 022
unset PYTHONHOME PYTHONPATH

say() {
    printf '%s: %s\n' "$program" "$*" >&2
}

refuse() {
    say "$*"
    exit 2
}

have() {
    command -v "$1" >/dev/null 2>&1
}

# Run a command without its output; where it fails, show the end of that, on stderr.
quietly() {
    quiet_log=$(mktemp) || return 1
    quiet_status=0
    "$@" </dev/null >"$quiet_log" 2>&1 || quiet_status=$?
    [ "$quiet_status" -eq 0 ] || tail -n 25 "$quiet_log" >&2
    rm -f "$quiet_log"
    return "$quiet_status"
}

# ---- the operating system ----

is_python() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Set $python to the interpreter of the environment, "" where there is none new enough.
# /usr/bin/python3 comes first: it runs the crash-time handler, and its headers come by apt-get.
find_python() {
    python=
    if [ -n "${CRASHD_PYTHON:-}" ]; then
        is_python "$CRASHD_PYTHON" || refuse "CRASHD_PYTHON=$CRASHD_PYTHON is no Python from 3.11 on"
        python=$CRASHD_PYTHON
        return
    fi
    for candidate in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
        if is_python "$candidate"; then
            python=$candidate
            return
        fi
    done
}

# Whether this is a Debian from 12 on or an Ubuntu from 24.04 on, or made of one, with apt-get.
is_debian() {
    have apt-get && [ -r /etc/os-release ] && (
        ID='' ID_LIKE='' VERSION_ID=''
        # shellcheck disable=SC1091
        . /etc/os-release
        case $ID in
        debian) oldest=12 ;;
        ubuntu) oldest=24 ;;
        *)
            case " $ID_LIKE " in
            *" debian "* | *" ubuntu "*) exit 0 ;;
            esac
            exit 1
            ;;
        esac
        major=${VERSION_ID%%.*}
        [ "${major:-$oldest}" -ge "$oldest" ]
    )
}

system_name() {
    (
        PRETTY_NAME=
        # shellcheck disable=SC1091
        [ ! -r /etc/os-release ] || . /etc/os-release
        printf '%s' "${PRETTY_NAME:-this system}"
    )
}

# need PACKAGE CONDITION...: note the Debian package where the condition does not hold.
need() {
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}

has_python_header() {
    "$python" -c 'import os, sysconfig; open(os.path.join(sysconfig.get_path("include"), "Python.h"))'
}

# Whether a library can be loaded: drgn and pyseccomp bring none of these.
loads() {
    "${python:-python3}" -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$1"
}

compiles() {
    printf '#include <stdio.h>\nint main(void) { return 0; }\n' | gcc -x c -o /dev/null -
}

# Set $missing to the Debian packages that building and running crashd still needs.
find_missing() {
    missing=
    find_python
    if [ -z "$python" ]; then
        missing=" python3 python3-venv python3-dev"
    else
        need python3-venv "$python" -c 'import ensurepip, venv'
        need python3-dev has_python_header
    fi
    need gcc have gcc
    need libc6-dev compiles
    need pkgconf have pkg-config
    need libsystemd-dev pkg-config --exists libsystemd
    need zstd have zstd
    need openssl have openssl
    need util-linux have flock
    need libseccomp2 loads libseccomp.so.2
    need libstdc++6 loads libstdc++.so.6
    ! have apt-get || need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt
}

# What else the system tests need.
find_missing_of_system_tier() {
    need gdb have gdb
    need binutils have objcopy
    need g++ have g++
    need rustc have rustc
    need golang-go have go
    need prometheus have prometheus
    need systemd-container have systemd-nspawn
    need mmdebstrap have mmdebstrap
    need strace have strace
    need chromium have chromium
    need rpm have rpmbuild
    need lintian have lintian
    [ "${CRASHD_TEST_VM:-}" != 1 ] || need qemu-system-x86 have qemu-system-x86_64
}

# Bring what `finder...` finds missing, or refuse in one line with nothing changed.
provide() {
    [ "$(uname -s)" = Linux ] || refuse "crashd is for Linux, and this is $(uname -s)"
    case $here in
    *:*) refuse "a Python environment cannot be in a path with a colon: $here" ;;
    esac
    for finder in "$@"; do "$finder"; done
    [ -n "$missing" ] || return 0
    if ! is_debian; then
        [ -n "$python" ] || refuse "Python 3.11 or newer is needed, and $(system_name) has none at hand"
        refuse "missing, by the names of Debian's packages:$missing; they are installed for you on" \
            "Debian 12 and 13 and Ubuntu 24.04 only, and this is $(system_name)"
    fi
    if [ -z "$python" ] && [ -x /usr/bin/python3 ]; then
        refuse "Python 3.11 or newer is needed, and /usr/bin/python3 is $(/usr/bin/python3 -V 2>&1)"
    fi
    [ "$(id -u)" -eq 0 ] || refuse "missing:$missing; as root: apt-get install$missing"
    # shellcheck disable=SC2086
    apt_install $missing
    for finder in "$@"; do "$finder"; done
    [ -z "$missing" ] || refuse "still missing after apt-get:$missing"
}

apt_install() {
    say "installing $* with apt-get"
    DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
    export DEBIAN_FRONTEND NEEDRESTART_SUSPEND
    # A source that cannot be reached need not be the one that is needed: what counts is the install.
    quietly apt-get -qq -o DPkg::Lock::Timeout=300 update || say "apt-get update failed, ignoring"
    quietly apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 --no-install-recommends \
        install "$@" || refuse "apt-get could not install $*"
}

# ---- the locked environment ----

# build_environment DIRECTORY LOCK: a venv with exactly what the lock says, and crashd from the clone.
# Built anew only when the locks, pyproject.toml, the interpreter or the place have changed. The stamp is
# written last: an environment without it is unfinished, whatever happened, and is built anew.
build_environment() {
    environment=$1
    lock=$here/packaging/$2
    build_lock=$here/packaging/requirements-build.lock
    exec 8<"$here"
    flock 8 # run.sh and test.sh may be started together
    stamp=$({ "$python" -VV && printf '%s\n' "$here" && cat "$build_lock" "$lock" "$here/pyproject.toml"; } |
        sha256sum)
    if [ "$(cat "$environment/stamp" 2>/dev/null)" != "$stamp" ]; then
        say "building $environment with $("$python" -V)"
        rm -rf "$environment" || refuse "cannot replace $environment: was it made by another user?"
        quietly "$python" -m venv "$environment" || refuse "cannot make the environment $environment"
        # Only these two come as source, and are built with what the lock of build tools says.
        install_locked --only-binary=:all: -r "$build_lock"
        install_locked --only-binary=:all: --no-binary=pyinotify,systemd-python -r "$lock"
        pip_install -e "$here"
        printf '%s\n' "$stamp" >"$environment/stamp"
    fi
    build_handler
    exec 8<&-
}

# The native crash-time handler, beside its source. Static where the machine has a static libc: then a broken
# library or loader cannot lose a crash. Without it the Python handler is installed (store/handlerfile.py).
build_handler() {
    native=$here/crashd/native
    [ ! "$native/crashd-core" -nt "$native/crashd-core.c" ] || return 0
    case $(uname -m) in
    x86_64) branches=-fcf-protection ;;
    aarch64) branches=-mbranch-protection=standard ;;
    *) branches=-fPIE ;;
    esac
    for linked in -static-pie -pie; do
        # The same source makes the same bytes wherever it lies.
        quietly gcc -std=c11 -O2 -Wall -Wextra -fPIE -fstack-protector-strong -D_FORTIFY_SOURCE=2 \
            -fstack-clash-protection "$branches" "-ffile-prefix-map=$here=." -s "$linked" \
            -Wl,-z,relro,-z,now -o "$native/crashd-core.new" "$native/crashd-core.c" || continue
        mv "$native/crashd-core.new" "$native/crashd-core"
        return 0
    done
    say "the native handler cannot be built (why is above); the Python handler serves, 15 ms slower"
}

install_locked() {
    pip_install --require-hashes "$@"
}

pip_install() {
    PIP_USER=0 quietly "$environment/bin/python" -m pip --disable-pip-version-check --no-input install \
        --quiet --no-deps --no-build-isolation --use-pep517 "$@" || {
        rm -rf "$environment"
        refuse "pip could not fill $environment (why is above; it needs a package index)"
    }
}
