"""What a comparison looks like: one page that opens offline, its figures as PNG, in light and dark."""
