"""The HTTP face: requests of any path relayed to backends, bytes as they arrive."""
