"""Models shipped with the package and the recipes that made them."""
