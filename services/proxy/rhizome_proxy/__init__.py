"""The load-balancing proxy in front of engines."""
