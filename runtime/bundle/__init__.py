"""What an appliance is given: manifest, files, hashes; and how a bundle is written."""
