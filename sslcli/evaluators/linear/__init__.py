"""The evaluator `linear` and its parts."""
