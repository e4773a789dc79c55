"""A Debian in QEMU: real kernel, real systemd, real panics, by software emulation alone.

A job is a directory with run.sh; it is handed in and out on raw disks, so that the guest needs no
network and no shared file system (guest-job.sh has the inside).
"""

import fcntl
import io
import re
import shutil
import subprocess
import tarfile
import uuid
from pathlib import Path

from tests.vm import container, package

HERE = Path(__file__).parent
CACHE = Path("/var/cache/crashd-test/guest-5")
"""Another name with each change of build-guest.sh."""
WARM_SECONDS = 600
SECONDS = 1500
SYMBOLS_SECONDS = 7200
"""crash(8) starts two times: minutes each in emulation."""
_MODULES = ("kernel/drivers/watchdog", "kernel/drivers/block", "kernel/fs/ext4")
"""The guest panics in one of these; the debug information of all modules is another 1.1 GB."""
_MIB = 1 << 20


def missing() -> list[str]:
    """Name the programs that are not installed."""
    programs = ("qemu-system-x86_64", "mmdebstrap", "mke2fs")
    return [name for name in programs if shutil.which(name) is None]


def prepare(cache: Path = CACHE) -> Path:
    """Build the disk, and boot it once, which makes the capture kernel's initrd; return it."""
    warm = cache / "warm.ext4"
    cache.parent.mkdir(parents=True, exist_ok=True)
    with cache.with_suffix(".lock").open("w") as lock:  # two at once would build the same files
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not warm.exists():
            _build(cache, warm)
    return warm


def _build(cache: Path, warm: Path) -> None:
    subprocess.run(["bash", HERE / "build-guest.sh", cache], check=True, timeout=900)
    job = cache / "warm-job"
    job.mkdir(exist_ok=True)
    (job / "run.sh").write_text(
        "systemctl is-system-running --wait; test $(cat /sys/kernel/kexec_crash_loaded) = 1\n"
    )
    disk = cache / "warm.new"
    shutil.rmtree(cache / "warm-out", ignore_errors=True)
    status = run(job, cache / "warm-out", WARM_SECONDS, cache=cache, base=None, keep=disk)
    if status != 0:
        raise RuntimeError(f"the guest did not become ready ({status}): {cache}/warm-out")
    disk.rename(warm)


def run_tests(deb: Path, work: Path) -> dict[str, container.Outcome]:
    """Run the tests of guest.sh; `work` keeps their logs."""
    warm = prepare()
    job, out = work / "job", work / "out"
    job.mkdir(parents=True)
    shutil.copy(deb, job / "crashd.deb")
    package.make_previous(deb, job / "crashd-previous.deb", work)
    for name in ("lib.sh", "guest.sh"):
        shutil.copy(HERE / name, job)
    shutil.copy(HERE / "guest.sh", job / "run.sh")
    status = run(job, out, SECONDS, base=warm)
    print(
        *re.findall(r"(?m)^guest-job: .*", (out / "job.log").read_text(errors="replace")), sep="\n"
    )
    print(f"the guest ended with {status}")
    return container.outcomes(out / "job.log", out / "result")


def run_symbol_tests(deb: Path, work: Path) -> dict[str, container.Outcome]:
    """Run the tests of symbols.sh, with the package that has the symbols of the guest's kernel,
    which is downloaded from the distribution's own archive; `work` keeps their logs.
    """
    warm = prepare()
    job, out = work / "job", work / "out"
    job.mkdir(parents=True)
    shutil.copy(deb, job / "crashd.deb")
    _make_small(_debug_package(), job / "dbg.deb", work)
    shutil.copy(HERE / "lib.sh", job)
    shutil.copy(HERE / "symbols.sh", job)
    shutil.copy(HERE / "symbols.sh", job / "run.sh")
    status = run(job, out, SYMBOLS_SECONDS, base=warm)
    print(f"the guest ended with {status}")
    return container.outcomes(out / "job.log", out / "result")


def _debug_package(cache: Path = CACHE) -> Path:
    name = f"linux-image-{(cache / 'release').read_text().strip()}-dbg"
    if not (found := sorted(cache.glob(f"{name}_*.deb"))):
        command = ["apt-get", "-q", "download", name]
        subprocess.run(command, cwd=cache, check=True, timeout=600)
        found = sorted(cache.glob(f"{name}_*.deb"))
    return found[-1]


def _make_small(package: Path, target: Path, work: Path) -> None:
    """Make of the debug package the same without compression and without most modules, because
    an emulated processor takes half an hour to unpack it all.
    """
    tree = work / "dbg"
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    for module in tree.glob("usr/lib/debug/lib/modules/*/kernel/**/*.ko"):
        if not any(f"/{kept}/" in str(module) for kept in _MODULES):
            module.unlink()
    sums = tree / "DEBIAN/md5sums"
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(x for x in lines if (tree / x.split(maxsplit=1)[1].strip()).exists()))
    command = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(target)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)


def run(
    job: Path,
    out: Path,
    seconds: float,
    *,
    cache: Path = CACHE,
    base: Path | None,
    keep: Path | None = None,
    append: str = "",
) -> int:
    """Run a job; return its status, 124 when it took too long, 125 when it left none.

    `out` gets serial.log (the console), job.log and result/. The disk is a copy of `base`, and is
    moved to `keep` at the end.
    """
    out.mkdir(parents=True, exist_ok=True)
    disk, jobin, jobout = out / "disk", out / "jobin", out / "jobout"
    source = base or cache / "root.ext4"
    subprocess.run(["cp", "--sparse=always", source, disk], check=True)
    _pack(job, jobin)
    with jobout.open("wb") as file:
        file.truncate(64 * _MIB)
    command = _command(cache, out, append, {"root": disk, "jobin": jobin, "jobout": jobout})
    with (
        (out / "qemu.log").open("wb") as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as qemu,
    ):
        try:
            qemu.wait(seconds)
        except subprocess.TimeoutExpired:
            return 124
        finally:
            qemu.kill()
    result = out / "result"
    result.mkdir(exist_ok=True)
    subprocess.run(["tar", "xf", jobout, "-C", result], stderr=subprocess.DEVNULL, check=False)
    jobin.unlink()
    jobout.unlink()
    if keep is not None:
        disk.rename(keep)
    else:
        disk.unlink()
    try:
        return int((result / "status").read_text())
    except (OSError, ValueError):
        return 125


def _pack(job: Path, target: Path) -> None:
    with tarfile.open(target, "w") as tar:
        tar.add(job, arcname=".")
        name = uuid.uuid4().hex.encode()
        info = tarfile.TarInfo("./.jobid")
        info.size = len(name)
        tar.addfile(info, io.BytesIO(name))
    with target.open("r+b") as file:  # a disk is whole sectors
        file.truncate(-(-target.stat().st_size // _MIB) * _MIB)


def _command(cache: Path, out: Path, append: str, disks: dict[str, Path]) -> list[str]:
    drives: list[str] = []
    for serial, path in disks.items():
        readonly = "on" if serial == "jobin" else "off"
        drives += [
            "-drive",
            f"file={path},format=raw,if=none,id={serial},readonly={readonly},cache=unsafe",
            "-device",
            f"virtio-blk-pci,drive={serial},serial={serial}",
        ]
    line = f"root=/dev/vda rw console=ttyS0 net.ifnames=0 crashkernel=256M quiet {append}"
    machine = "-machine q35 -accel tcg,thread=multi -cpu max -smp 2 -m 1G -display none"
    options = f"{machine} -monitor none -nic none -device virtio-rng-pci"
    return [
        "qemu-system-x86_64",
        *options.split(),
        *("-kernel", str(cache / "vmlinuz"), "-initrd", str(cache / "initrd.img")),
        *("-append", line),
        *drives,
        *("-serial", f"file:{out}/serial.log", "-serial", f"file:{out}/job.log"),
    ]
