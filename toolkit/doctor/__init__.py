"""Checks of an appliance before a model runs on it: `ortkit doctor`."""
