"""One small script a verb. Each answers --help, exits 0 on success and prints one clear line on bad input."""
