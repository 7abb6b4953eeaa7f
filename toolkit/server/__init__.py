"""The server of `ortkit serve`: the APIs that clients speak, on the bundles of an appliance."""
