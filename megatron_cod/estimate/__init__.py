"""What a rank of a run holds and does, from the arguments alone: parameters, bytes, order of passes."""
