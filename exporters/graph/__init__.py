"""Edit an ONNX graph; knows no model."""
