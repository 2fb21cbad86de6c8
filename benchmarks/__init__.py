"""Complexity, accuracy and latency, and the report that joins them."""
