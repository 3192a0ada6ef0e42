"""From PyTorch weights to ONNX files, each checked against torch on real text."""
