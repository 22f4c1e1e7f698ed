"""Rewards: models, functions and their weighted sums."""
