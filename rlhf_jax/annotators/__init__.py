"""Annotators: what fills the optional fields of a batch."""
