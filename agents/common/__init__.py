"""What agents share: memories of episodes, the distribution of actions, schedules, the log."""
