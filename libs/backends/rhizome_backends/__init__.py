"""Inference servers of every kind behind one interface: are they well, how busy, what do they serve and cache."""
