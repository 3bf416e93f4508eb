"""The thin process before the model: gRPC, health, reflection, text for people, and the core's supervisor."""
