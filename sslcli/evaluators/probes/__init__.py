"""Parts that the trained probes share."""
