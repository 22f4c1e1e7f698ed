"""Programs that try the package, and are no part of it."""
