"""What every verb shares: the command line, a run from its configuration to its last step, and its scores."""
