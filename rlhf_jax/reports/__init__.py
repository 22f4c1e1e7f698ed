"""From results to the tables and figures of a study."""
