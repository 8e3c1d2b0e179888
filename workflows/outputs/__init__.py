"""From finished blocks to the files of a run, all of them whole."""
