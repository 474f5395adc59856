"""What each ATen operation does to channel labels."""
