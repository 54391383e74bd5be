"""The formulas in plain PyTorch: the slowest backend, the readable one, and the oracle of the others."""
