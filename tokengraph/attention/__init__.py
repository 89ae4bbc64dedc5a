"""What stands in for an attention mask, and what strategies read of attention."""
