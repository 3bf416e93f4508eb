"""What lets other people's routers use this engine: vLLM's gRPC contract and vLLM's KV events.

Nothing here generates, schedules or caches. Each module translates between a foreign message and our own, and
the front asks the core as it does for its own services.
"""
