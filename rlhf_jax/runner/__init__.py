"""A study in a workdir: stages run once, in order, resumable."""
