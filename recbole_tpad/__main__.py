"""``python -m recbole_tpad``: the command line where a console script cannot be used."""

import sys

from recbole_tpad.cli import main

if __name__ == "__main__":
    sys.exit(main())
