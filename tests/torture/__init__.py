"""Harnesses that break things on purpose; ``make torture`` runs them by a count, ``test_torture.py`` a few of each."""
