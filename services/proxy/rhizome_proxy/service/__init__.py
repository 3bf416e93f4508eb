"""What the proxy answers: EngineService, passed on to an engine, and ProxyService."""
