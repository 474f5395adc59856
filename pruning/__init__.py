"""Trace, cost, rank, regularise and slim: everything that touches the network itself."""
