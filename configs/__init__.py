"""Configuration files: `get_config()` returns an `ml_collections.ConfigDict` of what differs from the defaults.

The defaults are those of the dataclasses that the values become. A file whose `get_config` takes an argument names the
arguments that there are in `CHOICES`. The first lines of a file say the command, how long it takes and what comes out.
"""
