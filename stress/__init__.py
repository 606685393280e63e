"""Harnesses that break things on purpose: ``make torture`` runs them, ``tests/test_stress.py`` a few of each."""
