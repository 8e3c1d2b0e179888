"""Data and measurements around the product; run from a checkout, not part of the wheel."""
