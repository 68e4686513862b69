"""One pooling method a file; a new file is a new method."""
