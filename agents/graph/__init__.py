"""A network as PyG data, and encoders that look at it."""
