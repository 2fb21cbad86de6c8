"""From a PyTorch network to files that engines read."""
