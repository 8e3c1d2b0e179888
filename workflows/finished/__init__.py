"""What is done with a finished map: shown, exported, checked."""
