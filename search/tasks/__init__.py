"""What a network is for: its data, loss, training and score."""
