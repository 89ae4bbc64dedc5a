"""Objects that stock blocks take as attention masks, and the attention statistics that strategies read."""
