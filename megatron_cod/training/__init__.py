"""The training entry: arguments, recipes, batches, monitors, checkpoint guards."""
