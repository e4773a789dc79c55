"""What is built besides the Debian package (test_package.py): the RPM, the wheel and the sdist."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.vm import package

REPOSITORY = package.REPOSITORY
MULTIARCH = sysconfig.get_config_var("MULTIARCH")
DEBIANS_OWN = ("/usr/share/doc/crashd/", "/usr/share/lintian/", "/usr/share/python3/")


def run(*command: object, env: dict[str, str] | None = None) -> str:
    """Run a program that has to succeed; give what it printed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600, env=env)
    assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


def build_rpm(directory: Path, bundles: Path) -> Path:
    """Build the RPM of this checkout. That the packages in it come out the same when they are
    built and changed again is shown by the Debian package, which is staged by the same code.
    """
    environ = {**os.environ, **package.QUICK, "CRASHD_BUNDLES": str(bundles)}
    return Path(run("sh", REPOSITORY / "packaging/rpm.sh", directory, env=environ).strip())


@pytest.fixture(scope="module")
def rpm(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The RPM of this checkout."""
    return build_rpm(tmp_path_factory.mktemp("rpm"), bundles)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with wheel and sdist."""
    directory = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "hatchling", "build", "-d", directory)
    return directory


@pytest.mark.timeout(900)
def test_rpm_has_the_debian_packages_files(rpm: Path, deb: Path) -> None:
    listed = run("dpkg-deb", "-c", deb).splitlines()
    ours = {line for line in run("rpm", "-qpl", rpm).splitlines() if "/doc/" not in line}
    names = {line.split(maxsplit=5)[5].split(" -> ")[0].lstrip(".") for line in listed}
    theirs = {n for n in names if not n.endswith("/") and not n.startswith(DEBIANS_OWN)}
    assert theirs <= ours
    assert {name.rstrip("/") for name in ours} - theirs <= {n.rstrip("/") for n in names}


def test_what_root_builds_in_a_users_clone_is_the_users(tmp_path: Path) -> None:
    clone, other = tmp_path / "clone", tmp_path / "other"
    (clone / "dist").mkdir(parents=True)
    (clone / "dist/crashd.deb").touch()
    other.mkdir()
    (clone / "dist/link").symlink_to(other)
    os.chown(clone, 12345, 12345)
    script = '. "$0/packaging/lib.sh"; give_back "$here/dist" "$1"'
    run("env", "program=x", f"here={clone}", "sh", "-c", script, REPOSITORY, other)
    owners = {path.name: path.lstat().st_uid for path in (clone / "dist").iterdir()}
    assert owners == {"crashd.deb": 12345, "link": 12345}
    assert other.stat().st_uid == os.geteuid()


def test_package_is_small_and_lists_what_it_brings(deb: Path, tmp_path: Path) -> None:
    run("dpkg-deb", "-x", deb, tmp_path)
    bundles = tmp_path / "usr/lib/crashd"
    bom = json.loads((tmp_path / "usr/share/doc/crashd/crashd.cdx.json").read_text())
    listed = {component["name"].lower() for component in bom["components"]}
    brought = {
        path.name.split("-")[0].lower().replace("_", "-") for path in bundles.glob("*/*.dist-info")
    }
    assert bom["bomFormat"] == "CycloneDX"
    assert brought | {"elfutils", "capstone", "pcre2", "libkdumpfile", "zstd", "glibc"} <= listed
    assert not [path.name for path in bundles.glob("*/*.libs/*") if "ssl" in path.name]
    assert int(run("dpkg-deb", "-f", deb, "Installed-Size")) <= 60_000
    # a bound above would make an upgrade of the distribution remove crashd
    assert "<" not in run("dpkg-deb", "-f", deb, "Depends").replace(">=", "")


def test_package_depends_on_each_library_that_it_does_not_bring(deb: Path, tmp_path: Path) -> None:
    run("dpkg-deb", "-x", deb, tmp_path)
    files = [path for path in tmp_path.rglob("*.so*") if path.is_file() and not path.is_symlink()]
    libraries = [path for path in files if path.read_bytes()[:4] == b"\x7fELF"]
    needed = set(run("patchelf", "--print-needed", *libraries).split())
    depends = {word.split()[0] for word in run("dpkg-deb", "-f", deb, "Depends").split(", ")}
    owners = set()
    for soname in needed - {path.name for path in libraries}:
        # dpkg knows some below /lib alone
        owner = subprocess.run(
            ["dpkg", "-S", f"*lib/{MULTIARCH}/{soname}"],
            capture_output=True,
            text=True,
            check=False,
        )
        owners.add(owner.stdout.partition(":")[0] or soname)
    assert owners <= depends


@pytest.mark.timeout(900)
def test_rpm_is_the_same_to_the_byte_when_built_again(
    rpm: Path, bundles: Path, tmp_path: Path
) -> None:
    again = build_rpm(tmp_path, bundles)
    assert again.read_bytes() == rpm.read_bytes()


def test_rpm_is_installed_and_erased_without_a_rest(rpm: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    options = ("--root", root, "--nodeps", "--noscripts")
    run("rpm", *options, "-i", rpm)
    assert (root / "usr/libexec/crashd-core").stat().st_mode & 0o7777 == 0o755
    assert (root / "usr/lib/systemd/system/crashd.service").is_file()
    (root / "etc/crashd/crashd.toml").write_text("# mine\n")
    run("rpm", *options, "-e", "crashd")
    left = [p for p in root.rglob("*") if "crashd" in p.name and "/var/lib/rpm" not in str(p)]
    assert [path.name for path in left if not path.is_dir()] == ["crashd.toml.rpmsave"]


def test_rpms_scripts_are_posix_shell(rpm: Path, tmp_path: Path) -> None:
    for tag in ("PREIN", "POSTIN", "PREUN", "POSTUN"):
        text = run("rpm", "-qp", "--qf", f"%{{{tag}}}", rpm)
        if text != "(none)":
            script = tmp_path / tag
            script.write_text(text)
            run("dash", "-n", script)
            assert "crashd" in text
    assert "crashctl uninstall" in run("rpm", "-qp", "--qf", "%{PREUN}", rpm)


def test_wheel_has_crashd_alone_and_its_commands_run(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top.split("-")[0] for top in tops} == {"crashd"}
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv/bin"
    run(binaries / "python", "-m", "pip", "install", "--no-index", "--no-deps", wheel)
    dependencies = next(path for path in sys.path if path.endswith("site-packages"))
    site = next((tmp_path / "venv/lib").glob("python3*/site-packages"))
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    assert run(binaries / "crashctl", "--version").startswith("crashctl ")
    run(binaries / "crashd", "check-config", REPOSITORY / "etc/crashd.toml")


def test_sdist_has_all_that_is_needed_and_makes_the_same_wheel(built: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    (wheel,) = built.glob("*.whl")
    run("tar", "xf", sdist, "-C", tmp_path)
    (tree,) = tmp_path.iterdir()
    assert {"etc", "systemd", "packaging", "tests", "README.md"} <= {p.name for p in tree.iterdir()}
    run(
        "sh", "-c", f'cd "{tree}" && "{sys.executable}" -m hatchling build -t wheel -d "{tree}/out"'
    )
    assert (tree / "out" / wheel.name).read_bytes() == wheel.read_bytes()


@pytest.mark.timeout(900)
def test_debian_package_is_as_lintian_wants_it(deb: Path) -> None:
    run("lintian", "--allow-root", "--fail-on", "error,warning", deb)
