"""The commands of `rlhf-jax`, a module each, with `run(argv)`.

The docstring of a module is what its --help says; `main.COMMANDS` has the line
of each in `rlhf-jax --help`.
"""
