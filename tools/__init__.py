"""Programs for those who maintain the project: bundles written from their sources, tables from results."""
