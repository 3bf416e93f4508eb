"""How matrices lie in memory: dense, int8, fp8 or grouped integers; how they are filled from a checkpoint."""
