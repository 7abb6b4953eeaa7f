"""Several sequences at once: slots in one KV cache, batching, and the engine that a server runs."""
