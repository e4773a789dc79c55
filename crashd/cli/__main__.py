"""`python -m crashd.cli`: crashctl."""

import sys

from crashd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
