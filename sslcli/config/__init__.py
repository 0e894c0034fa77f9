"""YAML files and overrides → a validated `RunConfig`."""
