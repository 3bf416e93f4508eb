"""The HTTP surface that all simulated servers share: connections, completions, failures."""
