"""The environment as one frozen value: `load_config` reads it at start, all else is handed a `Config`."""
