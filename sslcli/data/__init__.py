"""How images reach the device: files, their order, workers, batches of uint8."""
