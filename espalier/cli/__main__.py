"""``python -m espalier.cli``."""

from espalier.cli import main

main()
