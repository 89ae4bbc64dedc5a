"""Which tokens become one cluster."""
