"""Where images come from: datasets, the order of their samples, and batches of uint8 on the device."""
