"""Checks of a user's model, tokenizer, data, reward and config, before a run.
"""
