"""`python -m keystow`: the same as the `keystow` command."""

import sys

from keystow.cli import main

if __name__ == "__main__":
    sys.exit(main())
