"""Files of a run folder: tensors and training checkpoints, JSON, pruned networks, and their mirror elsewhere."""
