"""The engines: which there are, how they are, and how busy they are."""
