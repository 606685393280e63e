"""Charts, pictures of slices, and the HTML report."""

REPORT_NAME = "report.html"
MAX_VIEWERS = 20
"""Patients whose slices are in the page unless asked: each takes about half a megabyte, and more for each run."""
