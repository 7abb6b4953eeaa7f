"""Who made a bundle: signatures, keys, certificates, the machine's policy, releases, and who may write."""
