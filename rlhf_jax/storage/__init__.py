"""Files that are whole or not there: arrays, checkpoints, metrics."""
