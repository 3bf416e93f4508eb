"""From what a model writes to what it means: thinking, answer and tool calls."""
