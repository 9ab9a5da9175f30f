"""Pseudo-labels on disk: what a trained model says of the unlabeled scans, to look at, correct and train on."""
