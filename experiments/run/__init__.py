"""What several verbs share: the command line, data for a run, training, evaluation. Verbs parse, call, and print."""
