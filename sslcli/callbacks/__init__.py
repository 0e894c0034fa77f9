"""Callbacks that observe a run: progress, TensorBoard, and monitors; one file per plugin."""
