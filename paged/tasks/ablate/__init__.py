"""task=ablate: every combination of choices, with the same seeds, in fresh processes."""
