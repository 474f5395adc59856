"""``python -m espalier``: the command ``espalier``."""

import os
import sys

from espalier.cli import main

if not sys.flags.safe_path and sys.path[0] == os.getcwd():
    del sys.path[0]  # `python -m` puts the working folder first, where it would hide packages; `main` puts it last
main()
