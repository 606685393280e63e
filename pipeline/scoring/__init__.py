"""Metrics, protocols, statistics and the result files of an evaluation."""
