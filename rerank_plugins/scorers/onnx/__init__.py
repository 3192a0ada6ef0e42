"""Cross-encoders in ONNX files, run by onnxruntime."""
