"""Charts, pictures of slices, and HTML pages."""

REPORT_NAME = "report.html"
MAX_VIEWERS = 20
"""Patients whose slices are in the page unless asked: each takes about half a megabyte, and more for each run."""
MAX_SLICES_BYTES = 12_000_000
"""What the slices in one page take at most, whatever the volumes' size; always those of one patient at least."""
