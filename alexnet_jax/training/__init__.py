"""Training: configuration, update rule, step, metrics, loop."""
