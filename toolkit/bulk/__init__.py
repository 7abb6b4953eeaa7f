"""Bulk jobs on tables of pyarrow: `ortkit.bulk`, and Parquet and Arrow files for `ortkit embed`."""
