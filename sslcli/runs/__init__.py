"""Run directories, checkpoints and backbone files."""
