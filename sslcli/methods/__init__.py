"""Self-supervised methods, one file per plugin."""
