"""A tuned study: arms compared at their own best learning rates, with paired seeds, by a rule fixed beforehand.

`study_file` reads STUDY.yaml, `shapes` finds widths, `jobs` makes the runs' command lines, `tuner` chooses rates,
`statistics` compares arms, `directory` keeps results, `scheduler` decides which runs come next, `runner` runs them.
"""
