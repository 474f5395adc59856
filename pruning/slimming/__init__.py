"""Cutting channels out of a network, and checking that what is left computes what it should."""
