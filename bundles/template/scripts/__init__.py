"""Code of this bundle."""
