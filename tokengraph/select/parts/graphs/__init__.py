"""Who may merge with whom."""
