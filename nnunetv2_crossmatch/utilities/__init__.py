"""Files, workers and errors: what every room uses."""
