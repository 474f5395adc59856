"""espalier."""
