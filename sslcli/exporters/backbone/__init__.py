"""The exporter `backbone` and its parts."""
