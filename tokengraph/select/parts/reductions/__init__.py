"""What a cluster becomes, where that is more than ``Assignment.reduce`` does."""
