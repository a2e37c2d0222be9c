"""Compare a whole sparse network with the same network made dense."""
