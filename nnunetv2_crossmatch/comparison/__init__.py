"""Did the unlabelled scans help? Trained models side by side, on the same cases."""
