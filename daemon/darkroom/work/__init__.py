"""One claimed job, from its request to its end."""
