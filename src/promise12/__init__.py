"""PROMISE12 and similar data sets: download, conversion to img/ and gt/, checks, splits, export."""
