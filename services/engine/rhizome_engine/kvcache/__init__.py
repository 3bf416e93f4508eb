"""KV pages and who holds them: page pool, radix tree of cached prefixes, one page list per request."""
