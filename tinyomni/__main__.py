"""`python -m tinyomni`: the same as the command `tinyomni`."""

import sys

from tinyomni.cli import main

if __name__ == "__main__":
    sys.exit(main())
