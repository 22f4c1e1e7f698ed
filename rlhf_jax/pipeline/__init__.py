"""What stages are put together from."""
