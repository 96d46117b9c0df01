"""One file a method; see `base.py` for what a method may decide."""
