"""Ready-made YAML configs, shipped in the wheel."""
