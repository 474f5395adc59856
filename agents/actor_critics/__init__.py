"""The networks of agents: actors and critics, with stochastic and with deterministic policies."""
