"""The matrix of trainers and folds as jobs, on this machine or on SLURM."""
