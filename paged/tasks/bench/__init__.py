"""task=bench: the engine measured against a peer on the same device, and against the floor."""
