"""YAML configs, checked as a whole; what they may name; and the recipes that they describe."""

from espalier.search.config.loading import Config, load_config, parse_config

__all__ = ["Config", "load_config", "parse_config"]
