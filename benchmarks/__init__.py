"""Against a plain form or a peer, in turns: `python -m benchmarks --help`."""
