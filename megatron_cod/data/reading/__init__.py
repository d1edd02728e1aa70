"""Input files: found, opened, divided into parts and read as documents."""
