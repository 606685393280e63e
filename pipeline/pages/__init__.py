"""Charts, pictures of slices, and HTML pages."""

REPORT_NAME = "report.html"
MAX_VIEWERS = 20
"""Patients whose slices a page shows by default. Each takes about half a megabyte, and more for each run."""
MAX_SLICES_BYTES = 12_000_000
"""Size of all slices in one page at most. A page always shows at least one patient, whatever the size."""
