"""Whole runs: a search from preparation to result, proxy studies, the pruning loop, and what reads a run again."""
