"""What a run and the person at it tell each other: progress, logs, signals."""
