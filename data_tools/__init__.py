"""Tools that make, convert and check data."""
