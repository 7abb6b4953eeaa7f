"""edgekit's command line."""
