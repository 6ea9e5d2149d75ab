"""What several tests share. `tiny_*` are the smallest of their kind; nothing here is a test."""
