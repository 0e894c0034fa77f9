"""The training loop, its session, checkpoints and resumption."""
