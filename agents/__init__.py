"""The network graph as PyG data, and learning agents that propose widths."""
