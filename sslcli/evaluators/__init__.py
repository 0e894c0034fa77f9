"""Evaluations of a frozen or fine-tuned backbone, one file or folder per plugin."""
