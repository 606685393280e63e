"""Code that the bundles' configs use: data, transforms, handlers, checks, files and the training.

``pipeline/scripts`` is the source. ``make bundles`` copies it unchanged into every bundle, where it is the package
``scripts``. It imports nothing of ``pipeline``, so that a bundle works where ``pipeline`` is not installed.
"""
