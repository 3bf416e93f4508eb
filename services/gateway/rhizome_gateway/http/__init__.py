"""HTTP below the endpoints: bodies, limits, disconnects, request ids."""
