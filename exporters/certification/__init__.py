"""Probe texts and the certificate of a bundle."""
