"""``python -m shadownet``: the same as the ``shadownet`` command."""

import sys

from shadownet.cli import main

if __name__ == "__main__":
    sys.exit(main())
