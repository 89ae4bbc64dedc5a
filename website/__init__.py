"""What builds the documentation site: pages made from docstrings, the registry and the files of results."""
