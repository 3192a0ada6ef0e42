"""PyTorch cross-encoders: packed where the architecture allows it, else padded."""
