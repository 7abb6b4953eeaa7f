"""What is carried to an offline machine: wheels for another platform."""
