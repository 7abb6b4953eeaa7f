"""Export of LLMs."""
