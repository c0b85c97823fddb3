"""What a run leaves for people to read: a page, its tables, plots. Computes no score."""
