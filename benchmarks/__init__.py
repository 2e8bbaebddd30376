"""What perdure does per second, and how that compares with the servers beneath it, in one run on one machine."""
