"""Bundles, their weights and backends, and the prediction of volumes."""
