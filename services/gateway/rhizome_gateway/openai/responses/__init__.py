"""OpenAI's Responses API, without anything stored."""
