"""`python -m rlhf_jax`: see `main`."""

from rlhf_jax import main

if __name__ == '__main__':
  main.main()
