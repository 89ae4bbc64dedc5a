"""Files in and out: photographs, checkpoints, ONNX."""
