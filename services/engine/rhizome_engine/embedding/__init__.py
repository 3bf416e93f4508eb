"""Inputs to vectors: how a prompt's hidden states become one, and what a checkpoint recommends."""
