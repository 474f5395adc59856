"""The network graph as a picture: boxes, where they lie, and what they show."""
