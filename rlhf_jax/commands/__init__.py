"""The commands of `rlhf-jax`, a module each, with `run(argv)`.

The first line of a module is what `rlhf-jax --help` says of it, the whole
docstring what its own --help does.
"""
