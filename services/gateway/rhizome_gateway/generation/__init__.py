"""Answers while they are generated: engine events to text, tool calls and the end."""
