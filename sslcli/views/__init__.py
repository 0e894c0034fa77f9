"""From a batch of images to its views: draws and the pipeline of operations."""
