"""How long a test waits for what should come: machines differ and are shared, so only a hang may take longer."""

PATIENCE_S = 280.0
"""Seconds; less than what pytest gives a test (`timeout` in pyproject.toml)."""
