"""Reads and writes files: photographs, checkpoints, ONNX."""
