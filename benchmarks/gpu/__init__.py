"""What `.ci/gpu` does: prepare a short time on a lent GPU, use it, and keep what was found."""
