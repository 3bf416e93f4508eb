"""Attention over a paged KV pool, behind one protocol."""
