"""The kinds of files and folders that hold weights, and how each is opened."""
