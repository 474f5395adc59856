"""Gates on channels, learned in any training loop and driven to a budget."""
