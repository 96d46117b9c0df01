"""A small world of real videos (and short texts) with questions whose answers and evidence are known exactly."""
