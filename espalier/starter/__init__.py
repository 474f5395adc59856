"""``espalier init``: the first config of a user, and a task to fill in."""
