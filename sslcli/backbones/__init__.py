"""Networks without a classifier: image → feature vector."""
