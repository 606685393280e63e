"""TIFF slices and NIfTI volumes: read, checked, written."""
