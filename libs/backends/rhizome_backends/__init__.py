"""Inference servers of every kind behind one interface: health, load, models, caches."""
