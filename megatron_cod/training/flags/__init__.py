"""What a flag may hold, and with which others it does anything: tables for the start's checks."""
