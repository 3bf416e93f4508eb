"""The OpenAI API's requests, responses and event streams."""
