"""Published PyTorch/ONNX names to ours and back; the only place that knows them."""
