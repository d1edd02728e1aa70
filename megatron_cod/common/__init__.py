"""Small pieces that several folders use: numbers in flags, lists and tables in messages, files, progress."""
