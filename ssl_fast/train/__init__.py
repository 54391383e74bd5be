"""The reference driver: trains an encoder with one of the losses, measures it, draws it."""
