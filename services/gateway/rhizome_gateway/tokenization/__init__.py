"""Text and token ids as clients send and read them."""
