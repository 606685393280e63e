"""Read, check and write slices, volumes and DICOM series."""
