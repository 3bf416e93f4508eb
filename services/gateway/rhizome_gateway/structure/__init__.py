"""What an answer must look like: formats, forced tool calls, and the check that a grammar compiles."""
