"""From what is named as an input to pixels that a model understands."""
