"""`espalier prune`: training and cutting by turns, without a search."""
