"""Decoders and heads; they never see an objective."""
