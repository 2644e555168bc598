"""What loading tries and compiles on a GPU before the first prompt."""
