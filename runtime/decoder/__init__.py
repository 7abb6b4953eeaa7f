"""Text generation: model runner, KV cache, sampling, chat."""
