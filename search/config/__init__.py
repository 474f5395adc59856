"""YAML configs, checked as a whole; what they may name; and the recipes that they describe."""
