"""The exporter `features` and its parts."""
