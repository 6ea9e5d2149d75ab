"""What `experiments.compress` is made of."""
