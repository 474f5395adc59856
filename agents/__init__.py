"""The network graph as PyG data, and an agent that looks at it and proposes widths, as an Optuna sampler.

From the ground up: `common`, `graph`, `environment`, `actor_critics`, `algorithms`, `training`, `sampling`.
"""
