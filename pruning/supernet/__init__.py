"""Weights that all widths of a network share, or that a second network makes for them."""
