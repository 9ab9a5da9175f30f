"""Semi-supervised medical image segmentation inside nnU-Net."""
