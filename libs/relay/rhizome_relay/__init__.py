"""An HTTP/1.1 relay at protocol level: requests of any path, bytes as they arrive."""
