"""What people look at: results in, pages and pictures out."""
