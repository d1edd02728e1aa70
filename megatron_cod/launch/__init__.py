"""The processes of a launch: how they start, find each other, agree to begin, write logs, and end."""
