"""Quantization of matrices, in numpy alone."""
