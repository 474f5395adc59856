"""The network graph as PyG data, and an agent that looks at it and proposes widths, as an Optuna sampler."""
