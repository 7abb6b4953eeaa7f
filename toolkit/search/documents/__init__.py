"""Documents as passages with their places: one module per format, and `reading.py` to choose among them."""
