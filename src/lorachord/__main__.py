"""`python -m lorachord`: the command, for an interpreter that has no `lorachord` on its path."""

import sys

from lorachord_cli import main

if __name__ == "__main__":
    sys.exit(main())
