"""Charts, pictures of slices, and the HTML report."""
