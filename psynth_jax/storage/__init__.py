"""Buckets of Google Cloud Storage, as gs://BUCKET/KEY: paths, copies on this disk, directories that are written there."""
