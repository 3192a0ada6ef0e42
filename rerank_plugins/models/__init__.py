"""Models that ship with the package, and how model files are found."""
