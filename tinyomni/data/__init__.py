"""Data: a closed world that a laptop can make, and the doors for real data."""
