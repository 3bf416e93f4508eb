"""Structured output: the token masks that hold a model to its grammars."""
