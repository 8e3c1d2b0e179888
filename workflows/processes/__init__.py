"""Who computes the blocks: this process, workers on this machine, Dask, jobs of a cluster."""
