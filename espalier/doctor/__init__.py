"""``espalier doctor``: what this machine has, and what a config would take here, before it is run."""
