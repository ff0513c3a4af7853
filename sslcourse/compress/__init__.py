"""Smaller and faster models: integers, ONNX, pruning, distillation."""
