"""Text to token ids and back: tokenizers, stop strings, chat templates."""
