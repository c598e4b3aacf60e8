"""Data: a closed world that is generated on the spot, and loaders of custom data."""
