"""The formulas in plain PyTorch: the slowest backend, the readable one, the others' oracle."""
