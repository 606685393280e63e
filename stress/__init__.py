"""Programs that break files and runs on purpose. ``make torture`` runs all, ``tests/test_stress.py`` a few of each."""
