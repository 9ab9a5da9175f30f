"""Everything that nnU-Net does not promise and this package relies on, see README.md."""
