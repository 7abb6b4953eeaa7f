"""ONNX Runtime sessions: provider, CPU features, threads, memory."""
