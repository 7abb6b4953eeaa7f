"""What carries bundles to an appliance: packs, SBOMs, wheels and kits. Imports neither torch, onnx nor the Hub."""
