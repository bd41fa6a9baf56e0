"""Official checkpoints (PyTorch names, safetensors) to parameters, by one table that reads both ways."""
