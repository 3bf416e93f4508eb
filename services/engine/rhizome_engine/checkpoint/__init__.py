"""Reading a Hugging Face checkpoint directory."""
