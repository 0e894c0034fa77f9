"""Writers of trained backbones and their features, one file or folder per plugin."""
