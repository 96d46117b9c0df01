"""Public data formats to the canonical manifest and back; one module a format."""
