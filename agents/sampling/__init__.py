"""An agent as an Optuna sampler, and what the numbers that it proposes mean."""
