"""Which backend holds which prefixes of prompts."""
