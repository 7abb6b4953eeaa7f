"""GGUF files: header, tokenizer, quantized blocks."""
