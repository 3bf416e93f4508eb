"""Checkpoints whose matrices are integers already: one file per format."""
