"""Studies of a search: what it could win, which proxy to take, what its trials were, figures."""
