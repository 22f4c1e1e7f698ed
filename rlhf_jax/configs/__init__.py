"""Config trees: what studies and experiments have in common."""
