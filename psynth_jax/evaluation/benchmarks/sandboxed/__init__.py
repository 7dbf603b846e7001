"""Files that are sent into the sandbox; they import nothing but Python's own library."""
