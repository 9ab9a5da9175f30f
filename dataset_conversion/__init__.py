"""Benchmarks and plain folders of scans as semi-supervised nnU-Net datasets, one file each."""
