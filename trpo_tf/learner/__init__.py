"""The mathematics of the update: no environment, no file, no flag."""
