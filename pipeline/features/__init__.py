"""Measure lesions: shape features of masks, and their association with clinical and genomic data."""
