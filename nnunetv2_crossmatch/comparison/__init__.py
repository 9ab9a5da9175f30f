"""Did the unlabeled scans help? Trained models side by side, on the same cases."""
