"""Rhizome's own contract, `EngineService` over gRPC, in front of a simulated engine."""
