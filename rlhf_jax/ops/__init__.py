"""Arithmetic on arrays that objectives and annotators share; no models."""
