"""The environment as one frozen value: `load_config` reads it at start; everything else gets a `Config`."""
