"""The trained model outside PyTorch: ONNX graphs for onnxruntime, on a CPU or in a browser tab."""
