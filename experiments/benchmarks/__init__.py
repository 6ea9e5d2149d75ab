"""What `experiments.benchmark` measures: one module a suite, one clock for all."""
