"""Real jobs on a real SLURM, which is installed and started for them."""
