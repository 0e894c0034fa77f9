"""The protocol of an evaluation: targets, labeled parts, sealed test images, results, tables."""
