"""Configurations of `experiments.finetune`, one a task."""
