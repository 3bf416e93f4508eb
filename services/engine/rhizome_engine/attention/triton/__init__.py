"""Attention in Triton, for GPUs: keys and values stay in their pages, whatever the size of a page."""
