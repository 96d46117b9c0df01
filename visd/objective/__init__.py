"""Group advantages, direction and magnitude, the policy loss."""
