"""What the graphs of each execution provider look like."""
