"""Models: found, trained, converted; and how well a map agrees with labels."""
