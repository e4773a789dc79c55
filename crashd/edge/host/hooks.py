"""Runs the administrator's hooks for a crash: the programs in hooks.d, and one URL.

A hook gets the crash's JSON on standard input, and nothing of the daemon's environment or
descriptors. Its failure only changes a counter.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from crashd.domain.text import printable
from crashd.domain.web.webhook import Body, build_body, find_rejection, parse_headers
from crashd.errors import ConfigError, CrashdError, FormatError, reason_of
from crashd.store.trusted import find_untrusted, read_trusted

HOOKS_MAX = 32
_ANSWER_MAX = 1 << 20
_ENVIRON = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
}


HEADERS_FILE_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class Webhook:
    """The URL that gets each crash, how, and the file with more headers; "" for none."""

    url: str = ""
    body: Body = "json"
    headers_file: str = ""

    def read_headers(self) -> dict[str, str]:
        """Read the file again: a token may have been renewed.

        Raises:
            ConfigError: it cannot be trusted or is wrong, or users other than root can read it.
        """
        if not self.headers_file:
            return {}
        path = Path(self.headers_file)
        raw = read_trusted(path, HEADERS_FILE_MAX)
        shown = printable(os.fsencode(path))
        if stat.S_IMODE(path.stat().st_mode) & stat.S_IROTH:
            raise ConfigError(f"{shown}: everybody can read its secrets", hint="chmod o-r")
        try:
            return parse_headers(raw)
        except FormatError as e:
            raise ConfigError(f"{shown}: {e}") from e


class HookError(Exception):
    """A hook failed; the message says which one, and why."""


def list_hooks(directory: Path) -> tuple[list[Path], list[str]]:
    """Return the programs to run, in the order of their names, and what is wrong with others.

    Root runs only programs that nobody else can change.
    """
    found: list[Path] = []
    wrong: list[str] = []
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return [], []
    except OSError as e:
        return [], [f"{directory}: {reason_of(e)}"]
    if why := _distrust(directory):
        return [], [f"{directory}: {why}"]
    for name in names:
        path = directory / name
        if name.startswith(".") or name.endswith(("~", ".dpkg-old", ".dpkg-new", ".rpmsave")):
            continue
        if why := _distrust(path):
            wrong.append(f"{printable(os.fsencode(path))}: {why}")
        elif path.is_file() and os.access(path, os.X_OK):
            found.append(path)
    return found[:HOOKS_MAX], wrong


def _distrust(path: Path) -> str | None:
    try:
        status = path.stat()
    except OSError as e:
        return reason_of(e)
    if os.geteuid() == 0 and status.st_uid != 0:
        return f"belongs to uid {status.st_uid} and not to root"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written by others"
    return find_untrusted(path)  # a link owned by root may lead through another user's directory


def run_hook(path: Path, document: bytes, seconds: float) -> None:
    """Run one hook; kill it, with all its processes, after `seconds`.

    Raises:
        HookError: it could not be started, failed, or was too slow.
    """
    name = printable(os.fsencode(path))
    try:
        process = subprocess.Popen(
            [os.fspath(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=_ENVIRON,
            start_new_session=True,
        )
    except OSError as e:
        raise HookError(f"{name} cannot be started: {reason_of(e)}") from e
    try:
        process.communicate(document, timeout=seconds)
    except subprocess.TimeoutExpired as e:
        if process.poll() is None:  # else it ended just now
            raise HookError(f"{name} did not end within {seconds:g} s") from e
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        process.wait()
    if process.returncode:
        raise HookError(f"{name} ended with status {process.returncode}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: a crash's data must reach no other URL than the administrator's."""

    def redirect_request(self, *details: object) -> None:
        """Return None, which refuses the redirect."""


def post(webhook: Webhook, document: bytes, seconds: float) -> None:
    """Send a crash's JSON to a URL, in the form that its service takes.

    Raises:
        HookError: the server cannot be reached, or does not accept it; or the file of headers is
            wrong.
    """
    try:
        body, more = build_body(webhook.body, document, webhook.read_headers())
    except (CrashdError, OSError) as e:
        raise HookError(f"the webhook failed: {reason_of(e)}") from e
    headers = {"User-Agent": "crashd", **more, "Content-Type": "application/json"}
    request = urllib.request.Request(webhook.url, body, headers, method="POST")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
    try:
        with opener.open(request, timeout=seconds) as answer:
            rejected = find_rejection(webhook.body, answer.read(1 << 16))
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as e:
        raise HookError(f"the webhook failed: {printable(reason_of(e))[:200]}") from e
    if rejected:
        raise HookError(f"the webhook failed: {rejected}")


def run_all(directory: Path, webhook: Webhook, document: bytes, seconds: float) -> list[str]:
    """Run all hooks, one after another; return what failed."""
    hooks, failures = list_hooks(directory)[0], []
    for path in hooks:
        try:
            run_hook(path, document, seconds)
        except HookError as e:
            failures.append(reason_of(e))
    if webhook.url:
        try:
            post(webhook, document, seconds)
        except HookError as e:
            failures.append(reason_of(e))
    return failures


def ask_for_all(address: Path, document: bytes, seconds: float) -> list[str]:
    """Have the service at `address` run all hooks within `seconds`; return what failed.

    Raises:
        HookError: the service cannot be reached, or does not answer in time.
    """
    answer = bytearray()
    deadline = time.monotonic() + seconds
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(seconds)
            peer.connect(str(address))
            peer.sendall(document)
            peer.shutdown(socket.SHUT_WR)
            while len(answer) <= _ANSWER_MAX:
                peer.settimeout(max(deadline - time.monotonic(), 0.001))
                if not (data := peer.recv(1 << 16)):
                    break
                answer += data
        failures = json.loads(answer)
    except OSError as e:
        raise HookError(f"{address} does not run the hooks: {reason_of(e)}") from e
    except ValueError as e:
        raise HookError(f"{address} did not report the results of the hooks") from e
    if not isinstance(failures, list):
        raise HookError(f"{address} did not report the results of the hooks")
    return [printable(str(failure).encode())[:400] for failure in failures]
