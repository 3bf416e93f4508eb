"""Structured output: grammars compiled aside, and the token masks that hold a model to them."""
