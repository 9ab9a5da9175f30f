"""How good a segmentation is, in the field's metrics, and beside what others published."""
