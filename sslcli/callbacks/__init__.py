"""Callbacks that watch a run: progress, TensorBoard, and monitors; one file per plugin."""
