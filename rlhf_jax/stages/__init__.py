"""Stages of studies: (context, **kwargs) -> dict of results.

A stage reads the results of others through its context and runs none of them.
It writes below `context.directory`, and may be called again after an
interruption: it then goes on where it was.
"""
