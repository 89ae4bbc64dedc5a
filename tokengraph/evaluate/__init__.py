"""What a strategy costs in accuracy, in time and in multiply-adds, on a user's model and images."""
