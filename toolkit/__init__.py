"""ortkit's command line."""
