"""EngineClient over gRPC and ZeroMQ, and the gRPC server kit."""
