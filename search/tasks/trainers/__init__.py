"""Tasks whose networks other libraries' trainers train: Hugging Face, Lightning and Ultralytics."""
