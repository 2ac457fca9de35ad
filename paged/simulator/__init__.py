"""The simulator: the engine's control plane on a virtual clock, without a model."""
