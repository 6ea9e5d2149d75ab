"""Results in; pages, pictures and tables out."""
