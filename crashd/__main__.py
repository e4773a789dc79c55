"""`python -m crashd`: the daemon."""

import sys

from crashd.daemon.main import main

if __name__ == "__main__":
    sys.exit(main())
