"""PyTorch modules and their loading."""
