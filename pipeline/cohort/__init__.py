"""A folder of slices or volumes -> a manifest of volumes; splits, folds, pseudonyms and phantoms."""
