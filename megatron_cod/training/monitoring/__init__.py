"""What a run reports: metrics, progress lines, the summary, the residual stream by layer."""
