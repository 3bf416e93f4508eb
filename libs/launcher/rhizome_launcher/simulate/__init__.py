"""Simulated inference servers: real ports and protocols in front of an engine that only keeps time.

`physics` says how long a step takes, `block_pool` which prefixes are cached, `engine` batches requests and
`heart` drives engines on the event loop. `http` and `flavours` are the surfaces of vLLM, SGLang, llama.cpp,
TGI and Ollama, `engine_service` is that of Rhizome's engine; `faults` breaks them on demand.
"""
