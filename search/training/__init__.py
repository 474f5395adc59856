"""What is trained: the ladder of regularisation strengths, and fine-tuned candidates."""
