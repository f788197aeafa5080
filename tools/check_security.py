#!/usr/bin/env python3
"""``shadownet check`` from a checkout, without installation."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shadownet.cli import main

if __name__ == "__main__":
    sys.exit(main(["check", *sys.argv[1:]]))
