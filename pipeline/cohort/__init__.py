"""Build a manifest of volumes from a folder of slices or volumes, with splits, folds, pseudonyms and phantoms."""
