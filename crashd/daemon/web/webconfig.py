"""Build a guard from Prometheus's web configuration file and the files that it names."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from socket import socket

from crashd.domain.text import printable
from crashd.domain.web.webconfig import Tls, WebConfigError, parse_web_config
from crashd.edge.web.webguard import Guard, PlainStream, Stream
from crashd.errors import ConfigError, FormatError
from crashd.store.trusted import read_trusted

FILE_MAX = 64 << 10
PEM_MAX = 1 << 20


def load_guard(name: str) -> Guard:
    """Read the file of `http.web_config`; return a guard that lets everybody in if it is "".

    YAML, bcrypt and TLS are imported only here, because most hosts do not need them.

    Raises:
        ConfigError: a file cannot be read, users other than root can change it, or it is wrong.

    """
    if not name:
        return Guard()
    from crashd.edge.web.basicauth import BasicAuth
    from crashd.edge.web.yamltext import parse_yaml

    path = Path(name)
    shown = printable(os.fsencode(path))
    raw = read_trusted(path, FILE_MAX)
    try:
        config = parse_web_config(parse_yaml(raw))
        gate = BasicAuth(config.users) if config.users else None
    except (FormatError, WebConfigError, ConfigError) as e:
        raise ConfigError(f"{shown}: {e}") from e
    wrap = PlainStream if config.tls is None else _tls_streams(config.tls, path.parent)
    return Guard(wrap, gate, config.headers, secure=config.tls is not None)


def _tls_streams(tls: Tls, directory: Path) -> Callable[[socket], Stream]:
    from crashd.edge.web.tls import TlsStream, build_context

    for name in (tls.cert_file, tls.key_file, tls.client_ca_file):
        if name is not None:
            read_trusted(directory / name, PEM_MAX)
    key = directory / tls.key_file
    if stat.S_IMODE(os.stat(key).st_mode) & stat.S_IROTH:
        raise ConfigError(
            f"{printable(os.fsencode(key))}: everybody can read the key", hint="chmod o-r"
        )
    context = build_context(tls, directory)
    return lambda peer: TlsStream(peer, context, tls.client_sans)
