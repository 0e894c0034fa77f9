"""View operations and presets, one file per plugin, and what they share."""
