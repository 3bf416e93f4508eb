"""The engine: front process, core process, model, radix KV cache, scheduler."""
