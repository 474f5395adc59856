"""What numbers from a few seeds say."""
