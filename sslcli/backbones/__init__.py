"""Networks without a classifier, image → feature vector, one file per architecture."""
