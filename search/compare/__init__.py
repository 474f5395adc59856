"""Is a search worth it? Methods beside each other under one protocol, and what their numbers say."""
