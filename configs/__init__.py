"""Configuration files: `get_config()` returns an `ml_collections.ConfigDict`; the first lines say the command."""
