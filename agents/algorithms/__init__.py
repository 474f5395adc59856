"""The agents by name: PPO, REINFORCE and DDPG, acting in one step or layer by layer."""
