"""Plugins for sslcli, one module each. Nothing is imported here: sslcli loads a module when its name is used."""
