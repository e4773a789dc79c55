"""crashctl by a user without privileges."""

import subprocess
import sys

from tests.running import Daemon

NOBODY = 65534
AS_NOBODY = """
import os, sys
import crashd.cli.main, crashd.cli.show.listing, crashd.cli.source, crashd.cli.control
import crashd.cli.show.pages
import crashd.cli.open.dump, crashd.cli.manage.change, crashd.cli.open.debug, crashd.store.corefile
os.setgroups([]); os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3)
sys.exit(crashd.cli.main.main(sys.argv[1:]))
"""


def as_nobody(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run crashctl as nobody; all is imported before, for a checkout may be root's alone."""
    return subprocess.run(
        [sys.executable, "-c", AS_NOBODY, "--root", str(daemon.paths.root), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
