"""The record of a search in an Optuna storage: trials, leases of drivers, run folders, overviews and copies."""
