"""The equation, its kernel and its types. Depends on torch alone."""
