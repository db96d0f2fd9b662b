"""What Storage decides: pure, without clocks, files and streams."""
