"""The networks, their registry, checkpoints and exact folding."""
