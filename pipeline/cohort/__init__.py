"""A folder of slices -> a manifest of volumes; splits, folds, pseudonyms and phantoms."""
