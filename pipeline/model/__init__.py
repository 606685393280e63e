"""A bundle read and trusted, its weights and backends, and the prediction of a volume."""
