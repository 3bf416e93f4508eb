"""How matrices lie in memory: dense, int8, or grouped integers; and how they are filled from a checkpoint."""
