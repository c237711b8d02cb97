"""What is asked of Python and of the machine."""
