"""What `python -m clouds` reads from its command line and shows on the terminal."""
