"""The image of packaging/kubernetes, without a builder of images.

Its Containerfile is carried out on a Debian of its release, and its containers run as the DaemonSet
says, each in a mount namespace.
"""

import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

DIRECTORY = Path(__file__).parents[2] / "packaging/kubernetes"
BASE = Path("/var/cache/crashd-test/slim-1")
"""Another name with each change of how it is made."""
SUITES = {"docker.io/library/debian:13-slim": "trixie"}
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_MOUNTS = """
set -eu
root=$1 config=$2
shift 2
mount --rbind /proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
while [ "$1" != -- ]; do
    [ -e "$1" ] || mkdir -p "$1"
    if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$root${2%/*}"; touch "$root$2"; fi
    mount --bind "$1" "$root$2"
    [ "$3" = rw ] || mount -o remount,bind,ro "$root$2"
    shift 3
done
shift
[ "$config" != ro ] || mount -o remount,bind,ro "$root"
exec chroot "$root" "$@"
"""


def _base(image: str) -> Path:
    """Make the root of a slim image: a minimal Debian without manuals, once for the machine."""
    suite = SUITES[image]
    root = BASE.with_name(f"{BASE.name}-{suite}")
    if not root.exists():
        new = root.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        new.parent.mkdir(parents=True, exist_ok=True)
        options = ["--quiet", "--mode=root", "--variant=minbase", "--components=main"]
        options += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc")]
        options.append('--aptopt=Acquire::Check-Valid-Until "false"')
        subprocess.run(["mmdebstrap", *options, suite, new], check=True, timeout=600)
        new.rename(root)
    return root


@dataclass(slots=True)
class Image:
    """A root that an overlay keeps apart from its base; unmounted by `close`."""

    root: Path
    entrypoint: list[str] = field(default_factory=list)

    @classmethod
    def build(cls, deb: Path, work: Path) -> "Image":
        """Carry out the Containerfile with a package in its context."""
        root, upper, inner = (work / name for name in ("root", "upper", "inner"))
        for directory in (root, upper, inner):
            directory.mkdir()
        made = cls(root)
        text = (DIRECTORY / "Containerfile").read_text().replace("\\\n", " ")
        for line in text.splitlines():
            word, _, rest = line.partition(" ")
            match word:
                case "FROM":
                    layers = f"lowerdir={_base(rest)},upperdir={upper},workdir={inner}"
                    mount = ["mount", "-t", "overlay", "-o", layers, "overlay", str(root)]
                    subprocess.run(mount, check=True)
                case "COPY":
                    source, target = rest.split()
                    assert source == "crashd.deb"
                    shutil.copy(deb, root / target.lstrip("/"))
                case "RUN":
                    made._build_step(rest)
                case "ENTRYPOINT":
                    made.entrypoint = yaml.safe_load(rest)
                case _:
                    assert not line or line.startswith("#"), line
        return made

    def _build_step(self, command: str) -> None:
        shutil.copy("/etc/resolv.conf", self.root / "etc/resolv.conf")
        done = self.run(["sh", "-c", command], env={"DEBIAN_FRONTEND": "noninteractive"})
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    def close(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", "--lazy", self.root], check=True)

    def command(
        self, words: list[str], mounts: list[tuple[str, str, bool]], *, read_only: bool
    ) -> list[str]:
        """Build the command that runs something in the root, with (source, target, is read-only)
        mounted.
        """
        flat = [
            word for source, target, ro in mounts for word in (source, target, "ro" if ro else "rw")
        ]
        kind = "ro" if read_only else "rw"
        return [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", _MOUNTS, "sh"),
            *(str(self.root), kind, *flat, "--", *words),
        ]

    def run(
        self,
        words: list[str],
        mounts: list[tuple[str, str, bool]] | None = None,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the root to its end."""
        return subprocess.run(
            self.command(words, mounts or [], read_only=False),
            env={"PATH": _PATH, "LC_ALL": "C.UTF-8", **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )

    def start(
        self, container: Any, volumes: dict[str, Path], log: Path, more: list[str]
    ) -> subprocess.Popen[bytes]:
        """Start a container of a pod: `volumes` are where the pod's are, `more` further directories
        that are the same inside.
        """
        mounts = []
        for mount in container["volumeMounts"]:
            source = volumes[mount["name"]]
            if "subPath" in mount:
                source /= mount["subPath"]
            mounts.append((str(source), mount["mountPath"], mount.get("readOnly", False)))
        mounts += [(path, path, False) for path in more]
        words = [*container.get("command", self.entrypoint), *container["args"]]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        print(shlex.join(words))
        with log.open("wb") as file:
            return subprocess.Popen(
                self.command(words, mounts, read_only=True),
                env={
                    "PATH": _PATH,
                    **{one["name"]: "node-1" for one in container.get("env", [])},
                },
                stdout=file,
                stderr=file,
            )
