"""FLAIR-abnormality segmentation in brain MRI: slices in, trained MONAI bundles and honest DSC tables out."""

__version__ = "0.1.0"
