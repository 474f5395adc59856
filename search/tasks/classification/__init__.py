"""Image classification: data sets, the training loop, and the temperature of logits."""
