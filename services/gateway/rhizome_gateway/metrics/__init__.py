"""The gateway's numbers: counted in `instruments`, served for Prometheus and, with the host's, as JSON."""
