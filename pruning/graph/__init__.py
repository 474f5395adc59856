"""The channel graph: groups of coupled channels, what they cost, and budgets of it."""
